-- Version 1 (PRAGMA user_version). Times are milliseconds since 1970.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
);

CREATE TABLE usernames (
    username   TEXT PRIMARY KEY,
    public_key TEXT NOT NULL UNIQUE,     -- one key, one name
    claimed_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);

CREATE TABLE offers (
    number      INTEGER PRIMARY KEY,     -- order of creation inside one millisecond
    id          TEXT NOT NULL UNIQUE,    -- SHA-256 over the SDP
    peer_id     TEXT NOT NULL,
    sdp         TEXT NOT NULL,
    secret      TEXT,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    answerer_id TEXT,
    answer_sdp  TEXT,
    answered_at INTEGER
);
CREATE INDEX offers_by_peer ON offers (peer_id, created_at);
CREATE INDEX offers_by_expiry ON offers (expires_at);

CREATE TABLE services (
    id         TEXT PRIMARY KEY,
    uuid       TEXT NOT NULL UNIQUE,
    username   TEXT NOT NULL,
    fqn        TEXT NOT NULL,
    offer_id   TEXT NOT NULL REFERENCES offers (id) ON DELETE CASCADE,
    peer_id    TEXT NOT NULL,
    public     INTEGER NOT NULL,
    metadata   TEXT,                     -- JSON text
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (username, fqn)
);
CREATE INDEX services_by_offer ON services (offer_id);

CREATE TABLE candidates (
    number     INTEGER PRIMARY KEY,
    offer_id   TEXT NOT NULL REFERENCES offers (id) ON DELETE CASCADE,
    role       TEXT NOT NULL,            -- offerer, answerer
    candidate  TEXT NOT NULL,            -- JSON text
    created_at INTEGER NOT NULL
);
CREATE INDEX candidates_by_offer ON candidates (offer_id, role, created_at);
