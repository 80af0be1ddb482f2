-- Organizations and their API keys.

-- part: key
id, org_id, name, template, created_at, revoked_at, expires_at, last_used_at

-- name: ensure_org
INSERT INTO orgs (id, slug)
SELECT %(id)s, %(slug)s
WHERE NOT EXISTS (SELECT FROM orgs WHERE slug = %(slug)s AND id <> %(id)s)
ON CONFLICT (id) DO UPDATE SET slug = excluded.slug;

-- name: find_org_slug
SELECT slug FROM orgs WHERE id = %(org_id)s;

-- name: list_orgs
SELECT orgs.id, slug, count(api_keys.id) AS keys
FROM orgs LEFT JOIN api_keys
    ON org_id = orgs.id AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > {service_time})
GROUP BY orgs.id
ORDER BY slug;

-- name: find_keys
SELECT sha256, {key} FROM api_keys WHERE sha256 = ANY (%(hashes)s);

-- name: create_key
INSERT INTO api_keys ({key}, sha256)
VALUES (
    %(id)s, %(org_id)s, %(name)s, %(template)s, %(created_at)s, %(revoked_at)s, %(expires_at)s,
    %(last_used_at)s, %(sha256)s
);

-- name: list_keys
SELECT {key} FROM api_keys WHERE org_id = %(org_id)s ORDER BY id DESC;

-- name: revoke_key
UPDATE api_keys SET revoked_at = %(now)s WHERE id = %(key_id)s AND revoked_at IS NULL;

-- name: record_use
-- Keeps the stored time if it is less than a minute older. Even if several workers serve the same
-- key, its time is thus written only about once a minute.
UPDATE api_keys SET last_used_at = used.at
FROM unnest(%(ids)s::text[], %(times)s::timestamptz[]) AS used (id, at)
WHERE api_keys.id = used.id
    AND (last_used_at IS NULL OR last_used_at <= used.at - interval '1 minute');
