-- When a key stops working, if ever, and when it was last used, to the minute.
ALTER TABLE api_keys
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN last_used_at timestamptz;
