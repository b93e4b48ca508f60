.PHONY: setup lock-filter check test format

# Once per clone, and again after a pull or checkout that changed uv.lock.
# git calls a file changed when its size is not the one it noted at checkout, before it asks the filter; `git add`
# notes the new size. It is left out where the pins themselves differ: that is a change for its author to stage.
setup: lock-filter
	uv sync
	if git diff --quiet -- uv.lock; then git add uv.lock; fi

# From now on `git add` and `git diff` see only the pins of uv.lock.
lock-filter:
	git config filter.uv-lock-pins.clean "uv run --no-project --quiet --python '>=3.11' python .ci/strip_lock.py"
	git config filter.uv-lock-pins.smudge cat
	git config filter.uv-lock-pins.required true

# What CI runs.
check:
	bash .ci/run

test:
	uv run pytest

format:
	uv run ruff check --fix .
	uv run ruff format .
