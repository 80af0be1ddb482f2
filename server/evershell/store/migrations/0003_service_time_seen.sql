-- The time of the service that the leading controller saw last, and when that was by the clock of
-- its machine that counts from the boot. With it, a program that starts notices that the clock of
-- the database was set while no program ran (server/evershell/store/service_clock.py).
ALTER TABLE service_clock
    ADD COLUMN seen_seconds float8,
    ADD COLUMN boot_id text,
    ADD COLUMN boot_seconds float8;
