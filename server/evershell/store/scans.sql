-- How lists read a bounded number of rows, whatever their filter is.
--
-- Each list has a query `newest`, which returns the rows that a page reads: the rows of one key, newest
-- first. It names the key scan_key and the id scan_id, and needs an index on both. The query `checked`
-- adds whether a row matches.
--
-- `newest` compares the key with an array. With `=`, PostgreSQL would know that all keys are equal. It
-- could then walk through the primary key, and skip the rows of other keys, however many there are.
-- With an array, it does not know this, and only the index on the key and the id has the order.

-- part: scanned
-- The SELECT hides the limit from PostgreSQL, which therefore plans for a tenth of the rows. If
-- PostgreSQL expected few rows, it could read and sort all rows of the key, however many there are.
(SELECT {max_rows})

-- part: page
-- The rows that match, and the last row that was read, even if it does not match.
SELECT * FROM (
    SELECT *, CASE
        WHEN row_number() OVER (ORDER BY scan_key DESC, scan_id DESC) = {max_rows} THEN scan_id
    END AS last_id
    FROM checked
) numbered
WHERE matches OR last_id IS NOT NULL
ORDER BY scan_key DESC, scan_id DESC
LIMIT %(limit)s
