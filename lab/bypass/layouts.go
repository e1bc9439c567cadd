package bypass

import (
	"archive/tar"
	"bytes"
	"fmt"
	"runtime"

	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// layout is an OCI layout of one image, on its way to being wrong.
type layout struct {
	files    map[string][]byte
	config   []byte
	manifest map[string]any
	index    map[string]any
}

func described(mediaType string, b []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

func newLayout(layer []byte) *layout {
	l := &layout{files: map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}, config: sound(layer).config}
	l.blob(layer)
	l.blob(l.config)
	l.manifest = map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": described(ociConfig, l.config), "layers": []any{described(ociLayer, layer)}}
	l.top()
	return l
}

func (l *layout) blob(b []byte) { l.files["blobs/sha256/"+digest(b)[7:]] = b }

// top makes the manifest, as it is now, the one of the index.
func (l *layout) top() {
	m := encode(l.manifest)
	l.blob(m)
	l.index = map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{described(ociManifest, m)}}
}

func (l *layout) tar() []byte {
	l.files["index.json"] = encode(l.index)
	return (&build{files: l.files}).tar()
}

// loadLayout is an attack by an OCI layout.
func loadLayout(name, reason string, change func(*layout)) Attack {
	return load(name, reason, func() []byte {
		l := newLayout(layer(probe))
		change(l)
		return l.tar()
	})
}

// named is what the index names, which an attack changes.
func (l *layout) named() map[string]any { return l.index["manifests"].([]any)[0].(map[string]any) }

// rawLayer is an image of bytes that are to be a layer.
func rawLayer(b []byte) []byte { return sound(b).tar() }

// header is one block of a tar archive of a regular file, written by hand: its size
// is what size says.
func header(name string, size string, kind byte) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000755\x000000000\x000000000\x00")
	copy(b[124:136], size)
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// block is content in whole blocks.
func block(text string) []byte { return append([]byte(text), make([]byte, (512-len(text)%512)%512)...) }

// pax is a header of extended records for the next entry.
func pax(records ...string) []byte {
	text := ""
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n++
		}
		text += fmt.Sprintf("%d %s\n", n, r)
	}
	return append(header("PaxHeaders/x", fmt.Sprintf("%011o\x00", len(text)), 'x'), block(text)...)
}

// ended is an archive with its end.
func ended(parts ...[]byte) []byte { return append(bytes.Join(parts, nil), make([]byte, 1024)...) }

// layouts: archives that are written by hand, so that two readers would take them
// for different images.
var layouts = []Attack{
	// Sizes that two readers of tar archives take from different places.
	// The record counts (POSIX.1-2017, pax): this is a sound layer, of another image.
	load("pax-size-other-than-the-header", approval.ReasonUnapproved, func() []byte {
		return rawLayer(ended(pax("size=512"), header("probe", "00000000000\x00", '0')))
	}),
	load("pax-size-negative", image.ReasonTar, func() []byte {
		return rawLayer(ended(pax("size=-1"), header("probe", "00000000000\x00", '0')))
	}),
	load("size-beyond-the-end", image.ReasonTar, func() []byte { return rawLayer(ended(header("probe", "77777777777\x00", '0'), block("x"))) }),
	load("size-negative", image.ReasonTar, func() []byte {
		return rawLayer(ended(header("probe", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", '0')))
	}),
	load("pax-name-out-of-the-root", image.ReasonName, func() []byte {
		return rawLayer(ended(pax("path=../../evil"), header("probe", "00000000000\x00", '0')))
	}),
	load("sparse-by-pax", image.ReasonType, func() []byte {
		return rawLayer(ended(pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=probe", "GNU.sparse.realsize=1099511627776"),
			header("GNUSparseFile.0/probe", "00000001000\x00", '0'), block("1\n1099511627775\n1\n")))
	}),
	load("attribute-that-redirects", image.ReasonType, func() []byte {
		return rawLayer(ended(pax("SCHILY.xattr.trusted.overlay.redirect=/etc"), header("d/", "00000000000\x00", '5')))
	}),
	load("second-archive-behind-the-end", image.ReasonTar, func() []byte {
		return rawLayer(append(ended(header("probe", "00000000000\x00", '0')), ended(header("evil", "00000000000\x00", '0'))...))
	}),
	inLayer("name-through-a-link", image.ReasonLink, tar.Header{Name: "d", Linkname: "/etc", Typeflag: tar.TypeSymlink}, tar.Header{Name: "d/passwd"}),
	load("whiteout-of-the-root", image.ReasonName, func() []byte { return rawLayer(ended(header(".wh...", "00000000000\x00", '0'))) }),

	// Indexes and manifests that two readers take differently.
	loadLayout("index-of-two-images", image.ReasonAmbiguous, func(l *layout) {
		l.index["manifests"] = append(l.index["manifests"].([]any), l.index["manifests"].([]any)...)
	}),
	loadLayout("index-without-an-image", image.ReasonAmbiguous, func(l *layout) { l.index["manifests"] = []any{} }),
	loadLayout("index-in-indexes", image.ReasonFormat, func(l *layout) {
		for range 4 {
			inner := encode(l.index)
			l.blob(inner)
			l.index = map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{described(ociIndex, inner)}}
		}
	}),
	loadLayout("index-that-names-another-platform", image.ReasonPlatform, func(l *layout) {
		// The configuration says what this machine is not, too, where it is amd64's or arm64's.
		l.config = bytes.Replace(l.config, []byte(fmt.Sprintf("%q", runtime.GOARCH)), []byte(`"riscv64"`), 1)
		l.blob(l.config)
		l.manifest["config"] = described(ociConfig, l.config)
		l.top()
		l.named()["platform"] = map[string]any{"os": "linux", "architecture": runtime.GOARCH}
	}),
	loadLayout("index-that-is-a-manifest-too", image.ReasonFormat, func(l *layout) {
		l.index["config"], l.index["layers"] = l.manifest["config"], l.manifest["layers"]
	}),
	loadLayout("manifest-that-is-an-index-too", image.ReasonFormat, func(l *layout) {
		l.manifest["manifests"] = l.index["manifests"]
		l.top()
	}),
	loadLayout("manifest-of-another-type", image.ReasonMediaType, func(l *layout) {
		l.named()["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
	}),
	loadLayout("manifest-called-a-layer", image.ReasonMediaType, func(l *layout) { l.named()["mediaType"] = ociLayer }),
	loadLayout("layer-packed-otherwise", image.ReasonMediaType, func(l *layout) {
		l.manifest["layers"].([]any)[0].(map[string]any)["mediaType"] = ociLayer + "+gzip"
		l.top()
	}),
	loadLayout("layer-from-elsewhere", image.ReasonMediaType, func(l *layout) {
		l.manifest["layers"].([]any)[0].(map[string]any)["urls"] = []string{"http://192.0.2.1/layer.tar"}
		l.top()
	}),
	loadLayout("layer-of-a-foreign-kind", image.ReasonMediaType, func(l *layout) {
		l.manifest["layers"].([]any)[0].(map[string]any)["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		l.top()
	}),
	loadLayout("artefact-that-is-no-image", image.ReasonMediaType, func(l *layout) {
		l.manifest["config"].(map[string]any)["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
		l.top()
	}),
	loadLayout("content-beside-the-digest", image.ReasonFormat, func(l *layout) { l.named()["data"] = []byte("{}") }),
	loadLayout("size-of-a-blob-other", image.ReasonBlob, func(l *layout) { l.named()["size"] = 7 }),
	loadLayout("byte-of-a-blob-flipped", image.ReasonBlob, func(l *layout) {
		for name, b := range l.files {
			if len(b) >= 1024 {
				b = bytes.Clone(b)
				b[512] ^= 1
				l.files[name] = b
			}
		}
	}),
	loadLayout("blob-by-a-path", image.ReasonFormat, func(l *layout) { l.named()["digest"] = "sha256:../../../etc/passwd" }),
	loadLayout("manifest-swapped", image.ReasonBlob, func(l *layout) {
		other := newLayout(layer(tar.Header{Name: "evil"}))
		l.files["blobs/sha256/"+digest(encode(l.manifest))[7:]] = encode(other.manifest)
	}),
	loadLayout("configuration-of-another-image", image.ReasonConfig, func(l *layout) {
		other := newLayout(layer(tar.Header{Name: "evil"}))
		l.blob(other.config)
		l.manifest["config"] = described(ociConfig, other.config)
		l.top()
	}),
}
