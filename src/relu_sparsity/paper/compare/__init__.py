"""Two revisions of the project on one page: what was changed, and what that changed."""
