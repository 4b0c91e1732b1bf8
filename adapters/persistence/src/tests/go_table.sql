CREATE TABLE message (
    id serial PRIMARY KEY,
    payload jsonb NOT NULL,
    status varchar(4) NOT NULL DEFAULT 'new' CHECK (status IN ('new', 'done')),
    reserved_to timestamp DEFAULT now(),
    created_at timestamp DEFAULT now()
)
