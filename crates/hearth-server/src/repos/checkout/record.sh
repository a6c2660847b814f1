# What the set-up left of a checkout, told before the VM is frozen. Where the tree is not as the commit says, an index of what it
# holds is put beside git's own: names and hashes, and no content. It proves later that nobody has changed a file since.
export GIT_DIR=.git GIT_LITERAL_PATHSPECS=1
nl=$'\n'
[ -d .git ] || exit 4
rm -rf .git/hearth
said=$(git status --porcelain=v2 --branch --no-ahead-behind --no-renames --ignore-submodules=dirty --untracked-files=normal) || exit 4
while IFS= read -r line; do
    case $line in '# branch.oid '* | '# branch.head '*) printf '%s\n' "$line" ;; esac
done <<<"$said"
case "$said" in
*"$nl"[!#]*)
    mkdir .git/hearth
    cp .git/index .git/hearth/making 2>/dev/null || true
    git ls-files -z --modified --deleted --others --exclude-standard |
        GIT_INDEX_FILE=.git/hearth/making git update-index -z --add --remove --replace --info-only --stdin
    mv .git/hearth/making .git/hearth/index
    ;;
esac
