package bypass

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"

	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// build is an image in the form of docker save, on its way to being wrong.
type build struct {
	layers   [][]byte
	config   []byte
	manifest []any
	files    map[string][]byte // beside those of the manifest
	twice    string            // a file to write once more
}

// sound makes an image of layers, as docker save would.
func sound(layers ...[]byte) *build {
	b := &build{layers: layers, files: map[string][]byte{}}
	var ids, names []string
	for _, l := range layers {
		ids = append(ids, digest(l))
		names = append(names, digest(l)[7:]+"/layer.tar")
		b.files[digest(l)[7:]+"/layer.tar"] = l
	}
	b.config = encode(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/probe"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	name := digest(b.config)[7:] + ".json"
	b.files[name] = b.config
	b.manifest = []any{map[string]any{"Config": name, "RepoTags": []string{"evil:1"}, "Layers": names}}
	return b
}

func (b *build) tar() []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(name string, data []byte) {
		w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644})
		w.Write(data)
	}
	for name, data := range b.files {
		put(name, data)
	}
	if b.manifest != nil {
		put("manifest.json", encode(b.manifest))
	}
	if b.twice != "" {
		put(b.twice, b.files[b.twice])
	}
	w.Close()
	return out.Bytes()
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // of values that are written above
	}
	return b
}

func digest(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

// layer is a tar of headers, each with its name as content where it is a file.
func layer(headers ...tar.Header) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		w.WriteHeader(&h)
		if h.Size > 0 {
			w.Write([]byte(h.Name))
		}
	}
	w.Close()
	return out.Bytes()
}

func packed(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// load is an attack by an archive.
func load(name, reason string, archive func() []byte) Attack {
	return Attack{"load-" + name, reason, func(_ context.Context, r *Rig) error {
		return r.knock(r.socket, post("POST", "/v1.41/images/load", tarType, string(archive())))
	}}
}

// inLayer is an attack by what one layer holds.
func inLayer(name, reason string, headers ...tar.Header) Attack {
	return load(name, reason, func() []byte { return sound(layer(headers...)).tar() })
}

var probe = tar.Header{Name: "probe"}

// images that are not what they say.
var images = []Attack{
	load("not-an-archive", image.ReasonTar, func() []byte { return []byte("not an archive at all") }),
	load("cut-in-the-middle", image.ReasonTar, func() []byte { b := sound(layer(probe)).tar(); return b[:len(b)/2] }),
	load("byte-of-a-layer-flipped", image.ReasonConfig, func() []byte {
		b := sound(layer(probe))
		for name, data := range b.files {
			if len(data) > 1024 {
				data = bytes.Clone(data)
				data[512] ^= 1 // the first byte of the program
				b.files[name] = data
			}
		}
		return b.tar()
	}),
	// Another configuration is another image, whatever its file is called.
	load("byte-of-the-configuration-flipped", approval.ReasonUnapproved, func() []byte {
		b := sound(layer(probe))
		b.files[digest(b.config)[7:]+".json"] = bytes.Replace(b.config, []byte("/probe"), []byte("/prob3"), 1)
		return b.tar()
	}),
	load("layer-more-than-configured", image.ReasonConfig, func() []byte {
		b, more := sound(layer(probe)), layer(tar.Header{Name: "evil"})
		b.files["evil/layer.tar"] = more
		m := b.manifest[0].(map[string]any)
		m["Layers"] = append(m["Layers"].([]string), "evil/layer.tar")
		return b.tar()
	}),
	load("two-images", image.ReasonAmbiguous, func() []byte {
		b := sound(layer(probe))
		b.manifest = append(b.manifest, b.manifest[0])
		return b.tar()
	}),
	load("no-image", image.ReasonAmbiguous, func() []byte { b := sound(layer(probe)); b.manifest = []any{}; return b.tar() }),
	load("file-of-the-archive-twice", image.ReasonDuplicate, func() []byte {
		b := sound(layer(probe))
		b.twice = digest(b.config)[7:] + ".json"
		return b.tar()
	}),
	load("packed-with-a-tail", image.ReasonTar, func() []byte {
		l := layer(probe)
		b := sound(l)
		b.files[digest(l)[7:]+"/layer.tar"] = append(packed(l), "tail"...)
		return b.tar()
	}),
	load("bomb", image.ReasonTooLarge, func() []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		w.WriteHeader(&tar.Header{Name: "zeros", Size: 96 << 20, Mode: 0o644})
		zeros := make([]byte, 1<<20)
		for range 96 {
			w.Write(zeros)
		}
		w.Close()
		b := sound(out.Bytes())
		b.files[digest(out.Bytes())[7:]+"/layer.tar"] = packed(out.Bytes())
		return b.tar()
	}),
	inLayer("name-twice", image.ReasonDuplicate, probe, probe),
	inLayer("name-out-of-the-root", image.ReasonName, tar.Header{Name: "../evil"}),
	inLayer("absolute-name", image.ReasonName, tar.Header{Name: "/etc/evil"}),
	inLayer("link-out-of-the-root", image.ReasonLink, tar.Header{Name: "out", Linkname: "../../etc", Typeflag: tar.TypeSymlink}, tar.Header{Name: "out/evil"}),
	inLayer("hard-link-out-of-the-root", image.ReasonLink, tar.Header{Name: "out", Linkname: "../../etc/passwd", Typeflag: tar.TypeLink}),
	inLayer("device", image.ReasonType, tar.Header{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}),
	inLayer("pipe", image.ReasonType, tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}),
	load("for-another-machine", image.ReasonPlatform, func() []byte {
		b := sound(layer(probe))
		was := digest(b.config)[7:] + ".json"
		delete(b.files, was)
		other := map[string]string{"amd64": "arm64"}[runtime.GOARCH]
		if other == "" {
			other = "amd64"
		}
		b.config = bytes.Replace(b.config, []byte(fmt.Sprintf("%q", runtime.GOARCH)), []byte(fmt.Sprintf("%q", other)), 1)
		b.files[digest(b.config)[7:]+".json"] = b.config
		b.manifest[0].(map[string]any)["Config"] = digest(b.config)[7:] + ".json"
		return b.tar()
	}),
}
