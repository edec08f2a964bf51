-- Which timeline event relates to which other one by its m.relates_to. The target need not be known.
-- A row goes when its event is redacted.
CREATE TABLE relations (
    room     BIGINT NOT NULL,
    target   BYTEA NOT NULL,  -- as events.event_id
    anchor   BIGINT NOT NULL, -- place of the relating event, as in events
    sub      BIGINT NOT NULL,
    child    BIGINT NOT NULL, -- the relating event's nid
    event_id BYTEA NOT NULL,  -- the relating event's, as events.event_id: following relations needs no other table
    kind     BIGINT NOT NULL, -- RelationKind
    rel_type BYTEA NOT NULL,
    type     BYTEA NOT NULL,
    sender   BYTEA NOT NULL,
    PRIMARY KEY (room, target, anchor, sub)
) /*sqlite WITHOUT ROWID*/;

-- Replies in threads, for the list of a room's threads by their latest activity.
CREATE INDEX relations_in_threads ON relations (room, anchor, sub) WHERE kind = 2;

-- Annotations, to refuse a second one of the same sender.
CREATE INDEX relations_of_annotators ON relations (room, target, sender) WHERE kind = 4;
