"""Texts that do harm if code interprets them instead of treating them as plain text."""

INJECTIONS = {
    "a log line": 'x\n{"event": "rpc_completed", "org_id": "org_b", "outcome": "ok"}',
    "a header": "x\r\nx-evershell-status: 200\r\n\r\n",
    "a JSON field": '","code":"ok","admin":true,"x":"',
    "a terminal sequence": "\x1b[2J\x1b]0;title\x07",
    "lines of Unicode": "a\u2028b\u2029c\x85d",
    "right to left": "\u202egnp.exe",
    "SQL that drops": "'; DROP TABLE tasks; --",
    "SQL that matches all": "' OR '1'='1",
    "SQL with quotes": "$$; SELECT pg_sleep(9); $$ \\' \" `",
    "SQL placeholders": "$1 %s %(id)s :id ?",
    "SQL wildcards": "%",
    "an array of SQL": '{"a","b",NULL}',
    "a COPY line": "a\tb\\N\\.",
    "a format string": "{0.__class__} %n%x ${jndi:ldap://127.0.0.1/x}",
    "a command": "$(id) `id` | id & id; id",
    "a script": "<script>alert(1)</script>",
    "a formula": "=1+cmd|' /C calc'!A0",
    "a path": "../../../../etc/passwd",
    "an escape of NUL": "\\u0000 \\x00 %00",
    "a long character": "🐚" * 100,
}
# The texts that are valid in a header.
PRINTABLE = {
    name: text for name, text in INJECTIONS.items() if text.isascii() and text.isprintable()
}
