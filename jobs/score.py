"""Score on a cluster: `ray job submit --runtime-env runtime_env.yaml -- python jobs/score.py --data URI --out URI ...`.

The same arguments as `deescal score`.
"""

from deescal.cli import app

if __name__ == "__main__":
    import sys

    app(["score", *sys.argv[1:]], prog_name="jobs/score.py")
