"""Published schemas of what infra/cluster and infra/docker are written in, cut down to what these files use.

At each place that a file uses, all names that the schema allows are kept, so that a misspelt one is found; what is below a
name that no file uses is left open. Made by

    python -m tests.contract.schemas FOLDER_OF_KUBERAY COMMIT FILE_OF_COMPOSE COMMIT
"""
