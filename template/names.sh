# shellcheck shell=bash
# What the name of a project is, where it stands, and what is made of it.

# The package's.
project_name() {
  sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | head -n 1
}

# What names of containers and namespaces begin with: a DNS label, of at most 63 characters (RFC 1123), with room for more.
label_of() {
  local name=${1//_/-}
  echo "${name:0:40}"
}

# The sed script that renames package $1 to $2 in a lock file, with the version $3 if there is one: the entry that comes
# from no registry, and where another one needs it.
in_lock() {
  local version=${3:+"; s/\\nversion = \"[^\"]*\"/\\nversion = \"$3\"/"}
  printf '%s\n' "s/^ \"$1\",\$/ \"$2\",/" "/^name = \"$1\"\$/ { N; N; /\\nsource = /! { s/^name = \"$1\"/name = \"$2\"/$version; }; }"
}

# The sed script that renames $1 to $2, with the label $3, in the files of compose, which name a project and an image.
in_compose() {
  printf '%s\n' "s/^name: $(label_of "$1")(-dev|-staging)?\$/name: $3\\1/" "s/\{APP_IMAGE:-$1\}/{APP_IMAGE:-$2}/"
}
