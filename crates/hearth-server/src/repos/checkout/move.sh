# Moves a checkout from $HAVE to $BRANCH at $TARGET. What the set-up changed gives way. Where somebody has $WORKED_IN the VM, it stays as
# it is (exit 3) unless everything in the way is still as the set-up left it. A guest that is emulated computes every program anew that
# runs in it the first time, so there are two: one look, and the move. The tip of the remote branch is written as git would write it.
export GIT_DIR=.git GIT_LITERAL_PATHSPECS=1
nl=$'\n'
[ -d .git ] || exit 4
own=.git/hearth/index
look=(status --porcelain=v2 --branch --no-ahead-behind --no-renames --ignore-submodules=dirty)
force=--force
if [ -n "$WORKED_IN" ] && [ -d .git/hearth ]; then
    [ -f "$own" ] || exit 5
    said=$(GIT_INDEX_FILE=$own git "${look[@]}" --untracked-files=all) || exit 4
else
    said=$(git "${look[@]}" --untracked-files=no) || exit 4
fi
case "$said$nl" in
"# branch.oid $TARGET$nl# branch.head $BRANCH$nl"*) exit 0 ;;
"# branch.oid $HAVE$nl"*) ;;
*) exit 3 ;;
esac
if [ -z "$WORKED_IN" ]; then
    :
elif [ -d .git/hearth ]; then
    case "$said" in *"$nl"[12]\ ?[!.]* | *"$nl"u\ *) exit 3 ;; esac
    case "$said" in
    *"$nl"[?]*)
        # Files that came since: none of them may be in the way.
        new() { GIT_INDEX_FILE=$own git ls-files -z --others --exclude-standard; }
        above() {
            while IFS= read -r -d '' file; do
                while [[ $file == */* ]]; do
                    file=${file%/*}
                    printf '%s\0' "$file"
                done
            done
        }
        met=$(new | xargs -0 -r git ls-tree --name-only "$TARGET" --) || exit 1
        [ -z "$met" ] || exit 3
        met=$(new | above | xargs -0 -r git ls-tree "$TARGET" --) || exit 1
        case "$met" in *" blob "* | *" commit "*) exit 3 ;; esac
        ;;
    esac
else
    case "$said" in *"$nl"[!#]*) exit 3 ;; esac
    force=
fi
full=refs/remotes/origin/$BRANCH
packed=
if [ -f .git/packed-refs ]; then packed=$(<.git/packed-refs); fi
# A branch `a` and one `a/b` cannot both be: one of them is from before the other.
stale=()
for kind in remotes/origin heads; do
    name=$BRANCH
    while [[ $name == */* ]]; do
        name=${name%/*}
        if [[ -f .git/refs/$kind/$name || "$packed$nl" == *" refs/$kind/$name$nl"* ]]; then stale+=("refs/$kind/$name"); fi
    done
    if [[ -d .git/refs/$kind/$BRANCH || $packed == *" refs/$kind/$BRANCH/"* ]]; then stale+=("refs/$kind/$BRANCH/"); fi
done
if [ ${#stale[@]} -gt 0 ]; then
    git update-ref --no-deref HEAD "$HAVE"
    for name in "${stale[@]}"; do
        # A local branch with commits of its own is kept: then git says no below.
        only=()
        case $name in refs/heads/*) only=(--points-at "$HAVE") ;; esac
        git for-each-ref --format='delete %(refname)' "${only[@]}" "$name" | git update-ref --no-deref --stdin
    done
    git update-ref "$full" "$TARGET"
else
    [ -d ".git/${full%/*}" ] || mkdir -p ".git/${full%/*}" || exit 1
    echo "$TARGET" >".git/$full"
fi
git checkout --quiet $force -B "$BRANCH" --track "$full"
