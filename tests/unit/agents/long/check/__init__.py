"""The suite of `evershell agent check`, on good agents and on broken ones."""
