-- Which of the events that were stored before relationships (MSC2836) were indexed have to be looked through: those with
-- numbers in (after, up_to]. No row: none.
CREATE TABLE relationships_due (
    id    BIGINT PRIMARY KEY, -- 1
    after BIGINT NOT NULL,
    up_to BIGINT NOT NULL
);
INSERT INTO relationships_due (id, after, up_to) SELECT 1, 0, max(nid) FROM events HAVING max(nid) IS NOT NULL;
