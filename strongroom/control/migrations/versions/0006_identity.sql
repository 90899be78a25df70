-- Tokens and access keys that end before their time.

-- Keys that tokens are sealed with, newest first; each sealed by the ring derived from the master key.
CREATE TABLE token_keys (
    id         text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{32}$'),
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL
);

-- Tokens that were given back, until they would have expired.
CREATE TABLE revoked_tokens (
    audit_id   text PRIMARY KEY CHECK (length(audit_id) BETWEEN 1 AND 64),
    expires_at timestamptz NOT NULL
);
CREATE INDEX revoked_tokens_age ON revoked_tokens (expires_at);

-- Where a user logged in from with the right password: guesses from elsewhere do not lock the user out there.
CREATE TABLE login_sources (
    user_id text NOT NULL REFERENCES users ON DELETE CASCADE,
    source  bytea NOT NULL,                      -- digest of an address
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, source)
);

-- Tokens issued before this moment are void: the password was changed, or the operator said so.
ALTER TABLE users ADD COLUMN tokens_not_before timestamptz;

-- A temporary key counts only together with its security token, and until it expires.
ALTER TABLE access_keys ADD COLUMN expires_at timestamptz;
ALTER TABLE access_keys ADD COLUMN security_token_digest bytea CHECK (length(security_token_digest) = 32);
ALTER TABLE access_keys ADD CHECK ((expires_at IS NULL) = (security_token_digest IS NULL));
