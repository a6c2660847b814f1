-- What clients of E2B call the builds of a template.
CREATE TABLE e2b_tag (
    project_id words NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    tag        words NOT NULL,
    build      words NOT NULL,
    built_at   BIGINT NOT NULL,            -- when the build was begun
    tagged_at  BIGINT NOT NULL,
    PRIMARY KEY (project_id, tag)
);
