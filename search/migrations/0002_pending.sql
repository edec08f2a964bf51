-- PostgreSQL may gather what is new in an index before it sorts it in; searching what is gathered stays quick.
-- only: postgres
ALTER INDEX search_terms_gin SET (fastupdate = on, gin_pending_list_limit = 1024);
-- only: postgres
ALTER INDEX directory_terms_gin SET (fastupdate = on, gin_pending_list_limit = 256);
