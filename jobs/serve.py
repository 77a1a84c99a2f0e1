"""An endpoint on a cluster: `ray job submit --runtime-env runtime_env.yaml -- python jobs/serve.py --detach ...`.

The same arguments as `deescal serve`.
"""

from deescal.cli import app

if __name__ == "__main__":
    import sys

    app(["serve", *sys.argv[1:]], prog_name="jobs/serve.py")
