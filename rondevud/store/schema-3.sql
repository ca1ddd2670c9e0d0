-- Version 3. Messages with consecutive numbers that were stored together share a row; see packs.py. What stands between
-- CREATE and its end is in the file, where a damaged byte of it counts; so no comments there.

-- boot NULL: never expires; sizes and checks have 4 bytes for each message; crc is of all but the payloads.
CREATE TABLE outbox_packs (
    channel INTEGER NOT NULL, seq INTEGER NOT NULL, messages INTEGER NOT NULL, size INTEGER NOT NULL,
    producer INTEGER NOT NULL, producer_seq INTEGER NOT NULL, boot INTEGER, boot_expiry REAL, wall_expiry REAL,
    accepted REAL NOT NULL, sizes BLOB NOT NULL, checks BLOB NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (channel, seq)
);
CREATE INDEX outbox_packs_boot_expiry ON outbox_packs (channel, boot, boot_expiry, seq) WHERE boot IS NOT NULL;
CREATE INDEX outbox_packs_wall_expiry ON outbox_packs (channel, boot, wall_expiry, seq) WHERE boot IS NOT NULL;

CREATE TABLE inbox_packs (
    channel INTEGER NOT NULL, row INTEGER NOT NULL, messages INTEGER NOT NULL, size INTEGER NOT NULL,
    epoch BLOB NOT NULL, seq INTEGER NOT NULL, enqueued REAL NOT NULL, sizes BLOB NOT NULL, checks BLOB NOT NULL,
    crc INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (channel, row)
);
