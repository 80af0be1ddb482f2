-- depends: 0002_webhooks

-- What the agent card of a workspace says, beside its name. Apart from the workspaces, so that their
-- rows, which every call reads, stay small.
CREATE TABLE agent_cards (
    workspace_id text COLLATE "C" PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    description text NOT NULL,
    -- A description for each name.
    skills jsonb NOT NULL,
    is_public boolean NOT NULL
);
