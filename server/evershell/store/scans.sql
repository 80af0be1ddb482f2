-- How lists read a bounded number of rows, whatever their filter is.
--
-- Each list has a query `newest`, which returns the rows that a page reads: the rows of one key,
-- newest first. The query names the key scan_key and the id scan_id, and needs an index on both. A
-- query `checked` adds the column `matches`: whether the row fits the filter.
--
-- `newest` compares the key with an array. With `=`, PostgreSQL would know that all keys are equal.
-- It could then go through the primary key, and read and discard the rows of other keys, however
-- many there are. With an array, PostgreSQL does not know this. Only the index on the key and the
-- id then has the order that the query needs.

-- part: scanned
-- The SELECT hides the limit from the planner, which then assumes that a tenth of the rows of the
-- query is read. With a constant limit, if the planner expected few rows of the key, PostgreSQL
-- could read and sort all of them, however many there are.
(SELECT {max_rows})

-- part: named_workspaces
-- The workspaces with these ids. The LATERAL query looks up each one by its id. For a comparison with
-- the array, PostgreSQL might read all workspaces. Needs no limit, because a caller can name few.
(SELECT DISTINCT unnest(%(workspace_ids)s::text[]) AS id) named,
LATERAL (SELECT * FROM workspaces WHERE workspaces.id = named.id OFFSET 0) w

-- part: page
-- The rows that match. If the limit has ended the scan, also returns the last row that was read,
-- even if it does not match: its `last_id` says where the next page continues.
SELECT * FROM (
    SELECT *, CASE
        WHEN row_number() OVER (ORDER BY scan_key DESC, scan_id DESC) = {max_rows} THEN scan_id
    END AS last_id
    FROM checked
) numbered
WHERE matches OR last_id IS NOT NULL
ORDER BY scan_key DESC, scan_id DESC
LIMIT %(limit)s
