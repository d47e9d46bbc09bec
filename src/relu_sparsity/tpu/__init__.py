"""TPU slices: what training needs of them, and how a job runs on one."""
