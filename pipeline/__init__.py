"""The dispatch: parameters, shard cache, Prefect flows, runners, the command line."""
