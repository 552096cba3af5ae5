# Converts the output of `cargo metadata` to an SBOM in CycloneDX 1.5 format. It lists the packages that the binary links;
# dev-dependencies and build dependencies are excluded.
. as $all
| ($all.resolve.nodes | map({key: .id, value: .}) | from_entries) as $nodes
| def linked($id): $nodes[$id].deps
    | map(select(any(.dep_kinds[]; .kind == null)) | .pkg);
  def closure($seen; $todo):
    if ($todo | length) == 0 then $seen
    else ($todo | map(linked(.)) | add // [] | unique - $seen) as $new
    | closure(($seen + $new) | unique; $new) end;
  closure([$all.resolve.root]; [$all.resolve.root]) as $ids
| ($all.packages | map(select(.id as $id | $ids | index($id)))) as $packages
| def purl: "pkg:cargo/\(.name)@\(.version)";
{
  bomFormat: "CycloneDX",
  specVersion: "1.5",
  version: 1,
  metadata: {component: {type: "application", name: "gangplank", version: $version, "bom-ref": "pkg:cargo/gangplank@\($version)"}},
  components: ($packages | map(select(.id != $all.resolve.root) | {
    type: "library", name, version, purl: purl, "bom-ref": purl,
    licenses: (if .license then [{expression: (.license | gsub("/"; " OR "))}] else [] end)
  }) | sort_by(.purl)),
  dependencies: ($packages | map({ref: purl, dependsOn: (linked(.id) | map(. as $id | $all.packages[] | select(.id == $id) | purl) | unique)}) | sort_by(.ref))
}
