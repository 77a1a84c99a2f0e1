"""Evaluate on a cluster: `ray job submit --runtime-env runtime_env.yaml -- python jobs/evaluate.py --data URI ...`.

The same arguments as `deescal evaluate`.
"""

from deescal.cli import app

if __name__ == "__main__":
    import sys

    app(["evaluate", *sys.argv[1:]], prog_name="jobs/evaluate.py")
