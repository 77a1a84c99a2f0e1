"""Fine-tune on a cluster: `ray job submit --runtime-env runtime_env.yaml -- python jobs/train.py --data URI --out URI`.

The same arguments as `deescal train`.
"""

from deescal.cli import app

if __name__ == "__main__":
    import sys

    app(["train", *sys.argv[1:]], prog_name="jobs/train.py")
