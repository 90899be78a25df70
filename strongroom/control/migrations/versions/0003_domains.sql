-- A vault owns one domain and may hold others: what came from another vault brings its own along (RULINGS 11).
-- NULL is the vault's own domain, everywhere.

ALTER TABLE backups ADD COLUMN domain_id text CHECK (domain_id ~ '^[0-9a-f]{32}$');   -- of its root
ALTER TABLE sessions ADD COLUMN domain_id text;                -- whose index number it pins: each domain counts for itself

ALTER TABLE vault_keys ADD COLUMN domain_id text;
ALTER TABLE vault_keys DROP CONSTRAINT vault_keys_pkey;
CREATE UNIQUE INDEX vault_keys_by_domain ON vault_keys (vault_id, coalesce(domain_id, ''));
