BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE better_answers (
	id INTEGER NOT NULL, 
	message_id INTEGER NOT NULL, 
	person_id VARCHAR(32) NOT NULL, 
	content VARCHAR NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (message_id, person_id), 
	FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE, 
	FOREIGN KEY(person_id) REFERENCES people (id) ON DELETE CASCADE
);
INSERT INTO "better_answers" VALUES(1,4,'de5e809c125abb18','Yes, both: tea is warm, and rain smells good.','2026-11-27 19:29:32.764384');
CREATE TABLE comparisons (
	id INTEGER NOT NULL, 
	left_id INTEGER NOT NULL, 
	right_id INTEGER NOT NULL, 
	person_id VARCHAR(32) NOT NULL, 
	verdict VARCHAR(20) NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (left_id, right_id, person_id), 
	CONSTRAINT known_verdict CHECK (verdict in ('left', 'right', 'tie', 'both_bad')), 
	FOREIGN KEY(left_id) REFERENCES messages (id) ON DELETE CASCADE, 
	FOREIGN KEY(right_id) REFERENCES messages (id) ON DELETE CASCADE, 
	FOREIGN KEY(person_id) REFERENCES people (id) ON DELETE CASCADE
);
INSERT INTO "comparisons" VALUES(1,4,5,'de5e809c125abb18','right','2026-11-27 19:29:33.047192');
CREATE TABLE conversations (
	id VARCHAR(32) NOT NULL, 
	person_id VARCHAR(32) NOT NULL, 
	title VARCHAR NOT NULL, 
	created DATETIME NOT NULL, 
	updated DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(person_id) REFERENCES people (id) ON DELETE CASCADE
);
INSERT INTO "conversations" VALUES('f44c317ef91f1a29','de5e809c125abb18','雨和茶 🙂','2026-11-27 19:29:31.373671','2026-11-27 19:29:32.215339');
INSERT INTO "conversations" VALUES('0e02e22df3c0fb1f','6106b2b132471332','Bob''s own','2026-11-27 19:29:33.433753','2026-11-27 19:29:33.549641');
CREATE TABLE messages (
	id INTEGER NOT NULL, 
	conversation_id VARCHAR(32) NOT NULL, 
	parent_id INTEGER, 
	role VARCHAR(20) NOT NULL, 
	content VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	settings JSON NOT NULL, 
	finish VARCHAR(20) NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT known_role CHECK (role in ('system', 'user', 'assistant')), 
	FOREIGN KEY(conversation_id) REFERENCES conversations (id) ON DELETE CASCADE, 
	FOREIGN KEY(parent_id) REFERENCES messages (id) ON DELETE CASCADE
);
INSERT INTO "messages" VALUES(1,'f44c317ef91f1a29',NULL,'system','Be kind.','','{}','','2026-11-27 19:29:31.479812');
INSERT INTO "messages" VALUES(2,'f44c317ef91f1a29',1,'user','Do you like tea?
And rain? ''quoted'' %s','','{}','','2026-11-27 19:29:31.590713');
INSERT INTO "messages" VALUES(3,'f44c317ef91f1a29',2,'assistant','I like **rain** and tea 🙂','quickstart/sft','{"temperature": 0.7, "seed": 5}','stop','2026-11-27 19:29:31.708550');
INSERT INTO "messages" VALUES(4,'f44c317ef91f1a29',2,'assistant','No.','quickstart/ppo','{"pair": "x", "side": "left"}','length','2026-11-27 19:29:31.855746');
INSERT INTO "messages" VALUES(5,'f44c317ef91f1a29',2,'assistant','Tea alone.','quickstart/sft','{"pair": "x", "side": "right"}','stop','2026-11-27 19:29:31.955826');
INSERT INTO "messages" VALUES(6,'f44c317ef91f1a29',3,'user','为什么？','','{}','','2026-11-27 19:29:32.099925');
INSERT INTO "messages" VALUES(7,'f44c317ef91f1a29',6,'assistant','因为茶是暖的。','quickstart/sft','{}','stopped','2026-11-27 19:29:32.297630');
INSERT INTO "messages" VALUES(8,'0e02e22df3c0fb1f',NULL,'user','a secret of Bob','','{}','','2026-11-27 19:29:33.550606');
CREATE TABLE people (
	id VARCHAR(32) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	role VARCHAR(20) NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT known_role CHECK (role in ('admin', 'labeler', 'user')), 
	UNIQUE (name)
);
INSERT INTO "people" VALUES('de5e809c125abb18','owner','admin','2026-11-27 19:29:30.984750');
INSERT INTO "people" VALUES('6106b2b132471332','Bob','user','2026-11-27 19:29:31.286836');
CREATE TABLE rankings (
	id INTEGER NOT NULL, 
	person_id VARCHAR(32) NOT NULL, 
	prompt JSON NOT NULL, 
	responses JSON NOT NULL, 
	ranks JSON NOT NULL, 
	models JSON NOT NULL, 
	shown JSON NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(person_id) REFERENCES people (id) ON DELETE CASCADE
);
INSERT INTO "rankings" VALUES(1,'de5e809c125abb18','[{"role": "user", "content": "gin?"}]','["a", "b", "c"]','[1, 2, 2]','["m", "m", "n"]','[2, 0, 1]','2026-11-27 19:29:33.373718');
CREATE TABLE ratings (
	id INTEGER NOT NULL, 
	message_id INTEGER NOT NULL, 
	person_id VARCHAR(32) NOT NULL, 
	value INTEGER NOT NULL, 
	reasons JSON NOT NULL, 
	comment VARCHAR NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (message_id, person_id), 
	CONSTRAINT up_or_down CHECK (value in (-1, 1)), 
	FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE, 
	FOREIGN KEY(person_id) REFERENCES people (id) ON DELETE CASCADE
);
INSERT INTO "ratings" VALUES(1,3,'de5e809c125abb18',1,'["helpful", "kind"]','very good','2026-11-27 19:29:32.342895');
INSERT INTO "ratings" VALUES(2,4,'de5e809c125abb18',-1,'["unhelpful"]','','2026-11-27 19:29:32.614764');
CREATE INDEX ix_conversations_person_id ON conversations (person_id);
CREATE INDEX ix_messages_conversation_id ON messages (conversation_id);
CREATE INDEX ix_messages_parent_id ON messages (parent_id);
CREATE INDEX ix_ratings_message_id ON ratings (message_id);
CREATE INDEX ix_ratings_person_id ON ratings (person_id);
CREATE INDEX ix_better_answers_message_id ON better_answers (message_id);
CREATE INDEX ix_better_answers_person_id ON better_answers (person_id);
CREATE INDEX ix_comparisons_left_id ON comparisons (left_id);
CREATE INDEX ix_comparisons_right_id ON comparisons (right_id);
CREATE INDEX ix_comparisons_person_id ON comparisons (person_id);
CREATE INDEX ix_rankings_person_id ON rankings (person_id);
COMMIT;
