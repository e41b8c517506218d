#!/usr/bin/env bash
# Sets up .venv with what the commands need; with the word `dev` also with what tests, linters and notebooks need.
# The CUDA build of torch where nvidia-smi answers, else the CPU build. TORCH_BUILD=cuda or cpu decides instead, for login nodes
# and images, which are not where the work will be. Same command everywhere.
# Idempotent: the Makefile calls it only when this file, the pins or pyproject.toml are newer than the stamp.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
VENV=.venv
TORCH=2.13.0
UV=0.13.9
case ${1:-runtime} in
  runtime) PROJECT=. STAMPS=("$VENV/.stamp") ;;
  dev) PROJECT=".[dev]" STAMPS=("$VENV/.stamp" "$VENV/.stamp-dev") ;;
  *) echo "infra/env/setup.sh $1: the word after it is runtime (as without one) or dev" >&2 && exit 2 ;;
esac
TORCH_BUILD=${TORCH_BUILD:-$(nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}
case $TORCH_BUILD in cpu | cuda) ;; *) echo "TORCH_BUILD=$TORCH_BUILD is neither cpu nor cuda" >&2 && exit 2 ;; esac

"$PYTHON" - <<'PY' || { echo "motionstream needs Python 3.11 or 3.12 with venv (set PYTHON=/path/to/python3.11)" >&2; exit 1; }
import sys, venv
sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else 1)
PY
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet "uv==$UV"
# uv does not read pip's settings. Handed over, so that a mirror that serves pip serves uv too. (`pip config get` reads the user's
# file alone; `list` has the environment's first, then what holds of the files of user and system.)
settings=$("$VENV/bin/python" -m pip config list)
pip_setting() { sed -En "s/^(:env:|global)\.$1='(.*)'\$/\2/p" <<< "$settings" | sed -n 1p; }
for pair in UV_FIND_LINKS=find-links UV_DEFAULT_INDEX=index-url SSL_CERT_FILE=cert; do
  name=${pair%%=*} value=$(pip_setting "${pair#*=}")
  [ "$name" != UV_FIND_LINKS ] || value=$(sed -E 's/(\\n| )+/,/g; s/^,//' <<< "$value") # pip separates several by blanks
  [ -z "$value" ] || [ -n "${!name:-}" ] || export "$name=$value"
done
export UV_LINK_MODE=${UV_LINK_MODE:-copy} UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180} VIRTUAL_ENV="$PWD/$VENV"
# Where Python may not cache what it compiles, every command would compile all packages again: they would start at half the speed.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=${UV_COMPILE_BYTECODE:-1}
uv() { "$VENV/bin/uv" "$@"; }

if [ "$TORCH_BUILD" = cuda ]; then
  echo "environment (${1:-runtime}): CUDA build of torch $TORCH"
  uv pip install -c infra/env/constraints.txt "torch==$TORCH" -e "$PROJECT"
else
  echo "environment (${1:-runtime}): CPU build of torch $TORCH"
  # The +cpu local version matches no CUDA wheel: it fails in seconds rather than fetch gigabytes.
  sed "s/^torch==.*/torch==$TORCH+cpu/" infra/env/constraints.txt > "$VENV/constraints-cpu.txt"
  uv pip install -c "$VENV/constraints-cpu.txt" "torch==$TORCH+cpu" -e "$PROJECT" ||
    uv pip install --torch-backend cpu -c "$VENV/constraints-cpu.txt" "torch==$TORCH+cpu" -e "$PROJECT"
fi
uv pip install --no-deps -r infra/env/assets.txt
touch "${STAMPS[@]}"
