package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"

	"portcullis/verifier/approval"
)

// Media types that are taken, of OCI and of Docker.
const (
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// layerPacking is how a layer of a media type is packed.
var layerPacking = map[string]packing{
	ociLayer: packedNot, ociLayer + "+gzip": packedGzip, ociLayer + "+zstd": packedZstd,
	dockerLayer: packedNot, dockerLayer + ".gzip": packedGzip, dockerLayer + ".zstd": packedZstd,
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Data        []byte            `json:"data,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

func (p platform) String() string { return p.OS + "/" + p.Architecture }

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
	// Fields of a manifest. Who reads this file as one would see another image.
	Config json.RawMessage `json:"config,omitempty"`
	Layers json.RawMessage `json:"layers,omitempty"`
}

type manifestFile struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType,omitempty"`
	Config        descriptor      `json:"config"`
	Layers        []descriptor    `json:"layers"`
	Manifests     json.RawMessage `json:"manifests,omitempty"` // of an index
	FSLayers      json.RawMessage `json:"fsLayers,omitempty"`  // of schema 1
}

type configFile struct {
	platform
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	Config struct {
		User       string
		Entrypoint []string
		Cmd        []string
	} `json:"config"`
}

func (d descriptor) check(what string) error {
	switch {
	case !approval.IsDigest(d.Digest):
		return refuse(ReasonFormat, "%s: digest %.80q", what, d.Digest)
	case d.Size <= 0:
		return refuse(ReasonFormat, "%s: size %d", what, d.Size)
	case len(d.URLs) > 0:
		return refuse(ReasonMediaType, "%s: is elsewhere, by its urls", what)
	case len(d.Data) > 0:
		return refuse(ReasonFormat, "%s: has its content beside its digest", what)
	}
	return nil
}

func blobPath(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }

// small reads a file that has to be JSON.
func small(s source, name string) ([]byte, error) {
	b, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if b.size > maxJSON {
		return nil, refuse(ReasonTooLarge, "%s has %d bytes, at most %d are read", name, b.size, maxJSON)
	}
	data := make([]byte, b.size)
	if _, err := io.ReadFull(b.reader(), data); err != nil {
		return nil, refuse(ReasonBlob, "%s: %v", name, err)
	}
	return data, nil
}

// smallBlob reads a blob of JSON and holds it against its descriptor.
func smallBlob(s source, what string, d descriptor) ([]byte, error) {
	if err := d.check(what); err != nil {
		return nil, err
	}
	data, err := small(s, blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(ReasonBlob, "%s %s is not there", what, d.Digest)
	}
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != d.Size || approval.Digest(data) != d.Digest {
		return nil, refuse(ReasonBlob, "%s has %d bytes and the digest %s; %d and %s were named", what, len(data), approval.Digest(data), d.Size, d.Digest)
	}
	return data, nil
}

// ociImage finds the one image of an OCI layout.
func (a *Archive) ociImage(s source, want string) error {
	layout, err := small(s, "oci-layout")
	if err != nil {
		return err
	}
	var version struct{ ImageLayoutVersion string }
	if err := decode("oci-layout", layout, &version); err != nil {
		return err
	}
	if version.ImageLayoutVersion != "1.0.0" {
		return refuse(ReasonFormat, "an OCI layout of version %.20q", version.ImageLayoutVersion)
	}
	data, err := small(s, "index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonFormat, "index.json is not there")
	}
	if err != nil {
		return err
	}
	found, err := choose(s, data, want, 0)
	if err != nil {
		return err
	}
	if a.manifest, err = smallBlob(s, "manifest", found); err != nil {
		return err
	}
	a.manifestType = found.MediaType
	return a.parseManifest(s, found.Platform)
}

// choose takes the one manifest of an index that fits the platform.
func choose(s source, data []byte, want string, depth int) (descriptor, error) {
	var none descriptor
	var x index
	if err := decode("index", data, &x); err != nil {
		return none, err
	}
	if x.SchemaVersion != 2 || x.Config != nil || x.Layers != nil || x.MediaType != "" && x.MediaType != ociIndex && x.MediaType != dockerList {
		return none, refuse(ReasonFormat, "an index of schema %d and type %.80q, or with fields of a manifest", x.SchemaVersion, x.MediaType)
	}
	var fit []descriptor
	for _, d := range x.Manifests {
		// What a builder says of an image is no image, and is not taken along.
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		if want == "" || d.Platform == nil || d.Platform.String() == want {
			fit = append(fit, d)
		}
	}
	if len(fit) != 1 {
		return none, refuse(ReasonAmbiguous, "%d images that fit, of %d in the index; one is needed", len(fit), len(x.Manifests))
	}
	switch fit[0].MediaType {
	case ociManifest, dockerManifest:
		return fit[0], nil
	case ociIndex, dockerList:
		if depth == 2 {
			return none, refuse(ReasonFormat, "an index in an index in an index")
		}
		inner, err := smallBlob(s, "index", fit[0])
		if err != nil {
			return none, err
		}
		return choose(s, inner, want, depth+1)
	}
	return none, refuse(ReasonMediaType, "the index names a %.80q", fit[0].MediaType)
}

// readManifest parses a manifest that was named as of a media type. What it names
// was not looked at, but is of a kind that is taken.
func readManifest(data []byte, mediaType string) (*manifestFile, error) {
	var m manifestFile
	if err := decode("manifest", data, &m); err != nil {
		return nil, err
	}
	switch {
	case m.SchemaVersion != 2 || m.Manifests != nil || m.FSLayers != nil:
		return nil, refuse(ReasonFormat, "a manifest of schema %d, or with fields of another", m.SchemaVersion)
	case m.MediaType != "" && m.MediaType != mediaType:
		return nil, refuse(ReasonMediaType, "a manifest of type %.80q that was named as %.80q", m.MediaType, mediaType)
	case m.Config.MediaType != ociConfig && m.Config.MediaType != dockerConfig:
		return nil, refuse(ReasonMediaType, "a configuration of type %.80q: no container image", m.Config.MediaType)
	case len(m.Layers) == 0 || len(m.Layers) > approval.MaxLayers:
		return nil, refuse(ReasonTooLarge, "%d layers, 1 to %d are possible", len(m.Layers), approval.MaxLayers)
	}
	if err := m.Config.check("configuration"); err != nil {
		return nil, err
	}
	for i, d := range m.Layers {
		if err := d.check("layer"); err != nil {
			return nil, err
		}
		if _, ok := layerPacking[d.MediaType]; !ok {
			return nil, refuse(ReasonMediaType, "layer %d is a %.80q", i, d.MediaType)
		}
	}
	return &m, nil
}

func (a *Archive) parseManifest(s source, named *platform) error {
	m, err := readManifest(a.manifest, a.manifestType)
	if err != nil {
		return err
	}
	if a.config, err = smallBlob(s, "configuration", m.Config); err != nil {
		return err
	}
	for _, d := range m.Layers {
		a.Layers = append(a.Layers, Layer{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType, packing: layerPacking[d.MediaType], file: blobPath(d.Digest)})
	}
	return a.parseConfig(named)
}

func (a *Archive) parseConfig(named *platform) error {
	var c configFile
	if err := decode("configuration", a.config, &c); err != nil {
		return err
	}
	ids := c.RootFS.DiffIDs
	switch {
	case c.RootFS.Type != "layers" || len(ids) != len(a.Layers):
		return refuse(ReasonConfig, "the configuration names %d layers of kind %.20q, the manifest %d", len(ids), c.RootFS.Type, len(a.Layers))
	case c.OS == "" || c.Architecture == "":
		return refuse(ReasonPlatform, "the configuration names no platform")
	case named != nil && named.String() != c.platform.String():
		return refuse(ReasonPlatform, "the index says %.40q, the configuration %.40q", named, c.platform)
	case !slices.ContainsFunc(ids, approval.IsDigest) || slices.ContainsFunc(ids, func(d string) bool { return !approval.IsDigest(d) }):
		return refuse(ReasonConfig, "a diffID is no sha256 digest")
	}
	for i := range a.Layers {
		a.Layers[i].DiffID = ids[i]
	}
	a.Platform, a.User = c.platform.String(), c.Config.User
	return nil
}

// dockerImage finds the one image of an archive that docker save wrote without an
// OCI layout. It has no manifest; ours is made from what is there.
func (a *Archive) dockerImage(s source) error {
	data, err := small(s, "manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonFormat, "neither oci-layout nor manifest.json is there")
	}
	if err != nil {
		return err
	}
	var list []struct {
		Config string
		Layers []string
	}
	if err := decode("manifest.json", data, &list); err != nil {
		return err
	}
	if len(list) != 1 {
		return refuse(ReasonAmbiguous, "%d images in manifest.json; one is needed", len(list))
	}
	if n := len(list[0].Layers); n == 0 || n > approval.MaxLayers {
		return refuse(ReasonTooLarge, "%d layers, 1 to %d are possible", n, approval.MaxLayers)
	}
	if a.config, err = small(s, list[0].Config); err != nil {
		return missing(err, list[0].Config)
	}
	for _, name := range list[0].Layers {
		a.Layers = append(a.Layers, Layer{file: name, packing: packedAny})
	}
	return a.parseConfig(nil)
}

func missing(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonBlob, "%.100q is not there", name)
	}
	return err
}

// makeManifest writes the manifest of an image that came without one: the same for
// the same configuration and layers.
func (a *Archive) makeManifest() error {
	m := manifestFile{SchemaVersion: 2, MediaType: ociManifest,
		Config: descriptor{MediaType: ociConfig, Digest: approval.Digest(a.config), Size: int64(len(a.config))}}
	for _, l := range a.Layers {
		m.Layers = append(m.Layers, descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
	}
	var err error
	a.manifest, err = compact(m)
	a.manifestType = ociManifest
	return err
}

func compact(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
