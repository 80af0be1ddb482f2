-- How lists read a bounded number of rows, whatever they filter by.
--
-- A list has a query `newest` with the rows that a page reads: those of a key, newest first, whose key
-- and id it calls scan_key and scan_id. It needs an index on both. The query `checked` adds whether a
-- row matches.
--
-- `newest` compares the key with an array. With `=`, PostgreSQL would know that all keys are equal. It
-- could then read the rows of all keys by the primary key, and skip the others, however many there are.
-- With an array it does not know, so that only the index on the key and the id has the order.

-- part: scanned
-- PostgreSQL does not know this limit, because of the SELECT, and then plans for the first tenth of
-- the rows. If it expected few, it could read and sort all rows of the key, however many there are.
(SELECT {max_rows})

-- part: page
-- The rows that match. The last row that was read comes along even if it does not match.
SELECT * FROM (
    SELECT *, CASE
        WHEN row_number() OVER (ORDER BY scan_key DESC, scan_id DESC) = {max_rows} THEN scan_id
    END AS last_id
    FROM checked
) numbered
WHERE matches OR last_id IS NOT NULL
ORDER BY scan_key DESC, scan_id DESC
LIMIT %(limit)s
