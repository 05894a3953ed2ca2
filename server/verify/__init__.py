"""VERIFY: what is looked at before a contribution joins the pool."""
