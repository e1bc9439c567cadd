package image

import (
	"archive/tar"
	"encoding/json"
	"io"
	"slices"

	"portcullis/verifier/approval"
)

// OpenFile opens a file of an archive that lies anywhere, by its clean path. Where
// there is none the error is fs.ErrNotExist.
type OpenFile func(name string) (r io.ReaderAt, size int64, err error)

func (o OpenFile) open(name string) (*blob, error) {
	r, size, err := o(name)
	if err != nil {
		return nil, err
	}
	return &blob{ReaderAt: r, size: size, close: func() error { return nil }}, nil
}

// Close has nothing to close: whoever opens the files closes them.
func (OpenFile) Close() error { return nil }

// Blob is a part of an image by its digest.
type Blob struct {
	Digest string
	Size   int64 // bytes, as it is packed
}

// Outline is what an image says that it is. Its manifest and configuration were held
// against their digests; no layer was read. It is good for choosing what to fetch
// and what to hand on, and for nothing else: who loads an image reads it with Read.
type Outline struct {
	Platform string
	Manifest string   // digest; "" of an archive of docker save without one
	Config   string   // digest
	Layers   []string // diffIDs

	a Archive
}

// OutlineTar looks at a tar archive: an OCI layout, or what docker save wrote.
func OutlineTar(r io.ReaderAt, size int64, platform string) (*Outline, error) {
	s, err := newTarSource(r, size, func() error { return nil })
	if err != nil {
		return nil, err
	}
	return outline(s, platform)
}

// OutlineFiles looks at an OCI layout, or at the files of docker save.
func OutlineFiles(open OpenFile, platform string) (*Outline, error) {
	return outline(open, platform)
}

func outline(s source, platform string) (*Outline, error) {
	o := &Outline{a: Archive{source: s}}
	made, err := o.a.head(platform)
	if err != nil {
		return nil, err
	}
	i := o.a.Image()
	o.Platform, o.Config, o.Layers = o.a.Platform, i.Config, i.Layers
	if !made {
		o.Manifest = i.Manifest
	}
	return o, nil
}

// Is tells whether the image says that it is i.
func (o *Outline) Is(i approval.Image) bool {
	return o.Config == i.Config && (o.Manifest == "" || o.Manifest == i.Manifest) && slices.Equal(o.Layers, i.Layers)
}

// Tar packs the image into one archive, as Archive.Tar does, without looking at its
// layers. size is that of the archive, in bytes.
func (o *Outline) Tar() (archive io.ReadCloser, size int64, err error) {
	if o.Manifest == "" {
		return nil, 0, refuse(ReasonFormat, "files of docker save that are in no archive")
	}
	a := o.a
	a.Layers = slices.Clone(a.Layers)
	if err := a.openLayers(&budget{limits: Limits{}.filled()}); err != nil {
		return nil, 0, err
	}
	files, err := a.files()
	if err != nil {
		return nil, 0, err
	}
	const block = 512
	size = 2 * block // the end
	for _, f := range files {
		size += block + (f.size+block-1)/block*block
	}
	return a.Tar(), size, nil
}

// Index makes the index.json of a layout with one image.
func Index(manifest []byte, mediaType string) ([]byte, error) {
	return compact(index{SchemaVersion: 2, MediaType: ociIndex,
		Manifests: []descriptor{{MediaType: mediaType, Digest: approval.Digest(manifest), Size: int64(len(manifest))}}})
}

// MaxManifest is how long a manifest or a configuration may be, in bytes.
const MaxManifest = maxJSON

// ManifestTypes are the media types of manifests that are taken.
var ManifestTypes = []string{ociManifest, dockerManifest}

// ParseManifest tells what a manifest names: the configuration and the layers, each
// once. mediaType is what it was named as; "" where nobody said.
func ParseManifest(data []byte, mediaType string) (config Blob, layers []Blob, err error) {
	if mediaType == "" {
		mediaType = ociManifest
	}
	if mediaType == ociIndex || mediaType == dockerList {
		return config, nil, refuse(ReasonMediaType, "an index of several images: name the manifest of the one")
	}
	if !slices.Contains(ManifestTypes, mediaType) {
		return config, nil, refuse(ReasonMediaType, "a manifest of type %.80q", mediaType)
	}
	m, err := readManifest(data, mediaType)
	if err != nil {
		return config, nil, err
	}
	if m.Config.Size > maxJSON {
		return config, nil, refuse(ReasonTooLarge, "a configuration of %d bytes", m.Config.Size)
	}
	seen := map[string]int64{m.Config.Digest: m.Config.Size}
	total := m.Config.Size
	for _, d := range m.Layers {
		size, twice := seen[d.Digest]
		if twice && size != d.Size {
			return config, nil, refuse(ReasonBlob, "%s has %d bytes and %d", d.Digest, size, d.Size)
		}
		if twice {
			continue
		}
		if d.Size > (Limits{}).filled().Packed-total {
			return config, nil, refuse(ReasonTooLarge, "more than %d bytes", (Limits{}).filled().Packed)
		}
		total += d.Size
		seen[d.Digest] = d.Size
		layers = append(layers, Blob{d.Digest, d.Size})
	}
	return Blob{m.Config.Digest, m.Config.Size}, layers, nil
}

// IsArchive tells whether a file begins as a tar archive does.
func IsArchive(r io.ReaderAt, size int64) bool {
	_, err := tar.NewReader(io.NewSectionReader(r, 0, size)).Next()
	return err == nil
}

// TypeOf is the media type that a manifest says it has; "" where it says none. What
// it is worth is for ParseManifest to find out.
func TypeOf(manifest []byte) string {
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(manifest, &m) != nil || len(m.MediaType) > 200 {
		return ""
	}
	return m.MediaType
}
