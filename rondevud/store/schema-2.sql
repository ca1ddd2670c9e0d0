-- Version 2. Columns added to a table stand behind its crc, and are covered by it (see rows.py).

-- A channel's books: what became of all its messages; `rondevud.accounts` says how they add up. Channels that come from
-- version 1 begin with what they hold (see upgrades.py).
ALTER TABLE channels ADD COLUMN accepted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN acknowledged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN overflow INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN purged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN too_large INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN damaged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN received INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN taken INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN purged_in INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN overflow_in INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN damaged_in INTEGER NOT NULL DEFAULT 0;

-- Rows of the table failed, and payload bytes in them.
ALTER TABLE channels ADD COLUMN failed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN failed_bytes INTEGER NOT NULL DEFAULT 0;

-- When the message was accepted, seconds since 1970; NULL: before version 2.
ALTER TABLE outbox ADD COLUMN accepted REAL;

-- In sessions, `closed` is bits now: 1 closed, 2 blocked (see tables.py).

-- In rows of the inbox that are messages (kinds 1 and 2) `messages` is the deliveries counted against it; NULL: none.

-- Messages set aside because programs died of them; row is the one they had in the inbox.
CREATE TABLE failed (
    channel INTEGER NOT NULL, row INTEGER NOT NULL, epoch BLOB NOT NULL, seq INTEGER NOT NULL, kind INTEGER NOT NULL,
    payload BLOB NOT NULL, tries INTEGER NOT NULL, enqueued REAL NOT NULL, failed REAL NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (channel, row)
);
