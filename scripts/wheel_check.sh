#!/usr/bin/env bash
# Builds the sdist and, from it, the wheel; then imports every module from the wheel in an environment that holds the
# wheel and its core dependencies alone: no extras, no checkout. That environment is kept in build/, since filling it
# takes minutes, and is made anew whenever pyproject.toml or constraints.txt is newer.
set -euo pipefail
cd "$(dirname "$0")/.."

clean=$PWD/build/wheel-check
mkdir -p build

quietly() { # silence when it works, everything it said when it does not
  "$@" >build/wheel-check.log 2>&1 </dev/null || { local status=$?; cat build/wheel-check.log >&2; exit "$status"; }
}

rm -rf dist
quietly .venv/bin/python -m build --outdir dist .
if tar -tzf dist/*.tar.gz | grep -E '^[^/]+/(\.venv|runs|shared|dist|build)/'; then
  echo "wheel-check: the sdist holds the files above, which belong to one machine" >&2
  exit 1
fi

if [[ -e $clean/.installed && ! pyproject.toml -nt $clean/.installed && ! constraints.txt -nt $clean/.installed ]]; then
  quietly "$clean/bin/python" -m pip install --no-deps --force-reinstall dist/*.whl
else
  rm -rf "$clean"
  .venv/bin/python -m venv "$clean"
  quietly "$clean/bin/python" -m pip install --progress-bar off -c constraints.txt dist/*.whl
  touch "$clean/.installed" # last, so that an install that was cut short counts for nothing
fi

cd "$clean" # away from the checkout: what is imported is the wheel
bin/python - <<'PYTHON'
import importlib
import importlib.resources
import pathlib
import pkgutil
import sys

import jola_interp

home = pathlib.Path(jola_interp.__file__).resolve().parent
if not home.is_relative_to(pathlib.Path(sys.prefix).resolve()):
    sys.exit(f"wheel-check: imported from {home}, not from the wheel")
if not importlib.resources.files("jola_interp").joinpath("py.typed").is_file():
    sys.exit("wheel-check: py.typed is not in the wheel")
names = [module.name for module in pkgutil.walk_packages(jola_interp.__path__, "jola_interp.")]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
sys.stdout.write(f"wheel-check: jola_interp {jola_interp.__version__}, {len(names)} modules imported from the wheel\n")
PYTHON
bin/jola-interp --help >/dev/null
