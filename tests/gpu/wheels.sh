#!/bin/sh
# Gathers in a folder the wheels that a machine with a GPU lacks (tests/gpu/packages.py), to be carried there:
#
#     sh tests/gpu/wheels.sh            into wheels/, for Python 3.12 on x86-64 Linux
#     GPU_PYTHON_VERSION=3.11 sh tests/gpu/wheels.sh /media/stick/wheels
#
# Run it where pip reaches an index. There, `make gpu` finds them in wheels/ and needs no network.
set -eu

folder=${1:-wheels}
version=${GPU_PYTHON_VERSION:-3.12}
machine=${GPU_MACHINE:-x86_64}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=${PYTHON:-.venv/bin/python}

platforms="--platform linux_$machine"
for glibc in 2014 1 2010; do platforms="$platforms --platform manylinux${glibc}_$machine"; done
for minor in 5 12 17 24 26 27 28 31 34 35; do platforms="$platforms --platform manylinux_2_${minor}_$machine"; done

rm -rf "$folder"
mkdir -p "$folder"
"$python" -m tests.gpu.packages >"$folder/requirements.txt"
while read -r requirement; do
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version "$version" $platforms --dest "$folder" "$requirement" 2>"$folder/log" ||
        # No wheel: it is built here, which serves elsewhere where it is all Python.
        "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" "$requirement" ||
        { cat "$folder/log"; exit 1; }
done <"$folder/requirements.txt"
rm -f "$folder/log"

tag=cp$(echo "$version" | tr -d .)
if wrong=$(ls "$folder" | grep '\.whl$' | grep -v -e 'none-any' -e "$tag-.*$machine" -e "abi3-.*$machine"); then
    echo "error: not for Python $version on $machine:" $wrong >&2
    exit 1
fi
du -sh "$folder"
