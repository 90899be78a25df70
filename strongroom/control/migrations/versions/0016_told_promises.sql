-- promise_told: what the labels of the root in the store say of promised_until; NULL: nothing yet.

ALTER TABLE backups ADD COLUMN promise_told timestamptz;
CREATE INDEX backups_untold ON backups (vault_id)
    WHERE promised_until IS NOT NULL AND promise_told IS DISTINCT FROM promised_until;
