package fetch

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// Reference names an image of a registry, by digest alone: a tag may mean something
// else tomorrow.
type Reference struct {
	Host       string // with a port, where it is not that of HTTPS
	Repository string
	Digest     string // of the manifest
}

func (r Reference) String() string { return r.Host + "/" + r.Repository + "@" + r.Digest }

// Names as the OCI distribution-spec has them, "Pulling manifests".
var (
	hostForm       = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?|\[[0-9a-fA-F:]{2,45}\])(?::[0-9]{1,5})?$`)
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// ParseReference reads host/repository@sha256:….
func ParseReference(s string) (Reference, error) {
	name, digest, ok := strings.Cut(s, "@")
	if !ok || !approval.IsDigest(digest) {
		return Reference{}, refuse(ReasonReference, "%.200q has no digest: host/name@sha256:… is taken, a tag is not", s)
	}
	host, repository, ok := strings.Cut(name, "/")
	if !ok || !hostForm.MatchString(host) || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return Reference{}, refuse(ReasonReference, "%.200q does not begin with a registry's host", s)
	}
	if len(repository) > 255 || !repositoryForm.MatchString(repository) {
		return Reference{}, refuse(ReasonReference, "%.200q is no name of a repository", repository)
	}
	if host == "docker.io" { // its name for people
		host = "registry-1.docker.io"
	}
	return Reference{host, repository, digest}, nil
}

func (f *Fetcher) base(r Reference) string {
	scheme := "https"
	if f.opt.PlainHTTP {
		scheme = "http"
	}
	return scheme + "://" + r.Host + "/v2/" + r.Repository
}

// Registry fetches an image: its manifest, and each blob that this names, all held
// against their digests as they come. Blobs that are in the quarantine already are
// not fetched again.
func (f *Fetcher) Registry(ctx context.Context, q *Quarantine, r Reference) (*Image, error) {
	manifest, mediaType, err := f.manifest(ctx, q, r)
	if err != nil {
		return nil, err
	}
	config, layers, err := image.ParseManifest(manifest, mediaType)
	if err != nil {
		return nil, err
	}
	blobs := append([]image.Blob{config}, layers...)
	var total, missing int64
	for _, b := range blobs {
		total += b.Size
		if !q.has(b) {
			missing += b.Size
		}
	}
	if total > f.opt.MaxBytes {
		return nil, refuse(ReasonTooLarge, "%d bytes, at most %d are taken", total, f.opt.MaxBytes)
	}
	if err := q.room(missing); err != nil {
		return nil, err
	}
	var at int64
	resumed := false
	for _, b := range blobs {
		had, err := f.blob(ctx, q, r, b, at, total)
		if err != nil {
			return nil, err
		}
		at += b.Size
		resumed = resumed || had
	}
	i, err := q.layout(manifest, mediaType, f.opt.Platform)
	if err != nil {
		return nil, err
	}
	i.Name, i.Resumed = r.String(), resumed
	return i, nil
}

// manifest fetches the manifest. It is short, so that it always comes as a whole.
func (f *Fetcher) manifest(ctx context.Context, q *Quarantine, r Reference) (data []byte, mediaType string, err error) {
	p, err := openPart(filepath.Join(q.dir, "manifest.part"), f.base(r)+"/manifests/"+r.Digest, true)
	if err != nil {
		return nil, "", err
	}
	defer p.discard() // what could not be removed is overwritten the next time
	if err := p.restart(note{Version: partVersion, URL: p.note.URL, Total: -1}); err != nil {
		return nil, "", err
	}
	a := f.access(ctx, r)
	err = f.fill(ctx, p, want{size: -1, most: image.MaxManifest, digest: r.Digest, stage: "manifest", total: -1, refused: a.refused,
		prepared: func(q *http.Request) error {
			q.Header.Set("Accept", strings.Join(image.ManifestTypes, ", "))
			return a.prepared(q)
		}})
	if err != nil {
		return nil, "", err
	}
	if p.sum() != r.Digest {
		return nil, "", refuse(ReasonDigest, "the registry's manifest is %s, asked for was %s", p.sum(), r.Digest)
	}
	data = make([]byte, p.size)
	if _, err := p.file.ReadAt(data, 0); err != nil {
		return nil, "", storage(err)
	}
	return data, image.TypeOf(data), nil
}

// blob fetches one blob. What a former attempt left is hashed again and continued;
// where the two together are not the blob, it is fetched once more from its beginning.
func (f *Fetcher) blob(ctx context.Context, q *Quarantine, r Reference, b image.Blob, at, total int64) (resumed bool, err error) {
	if q.has(b) {
		f.opt.Progress("fetch", at+b.Size, total)
		return true, nil
	}
	p, err := openPart(q.blob(b.Digest)+".part", f.base(r)+"/blobs/"+b.Digest, true)
	if err != nil {
		return false, err
	}
	had := p.size
	if had > b.Size {
		if err := p.restart(p.note); err != nil {
			return false, errors.Join(err, p.Close())
		}
	}
	a := f.access(ctx, r)
	w := want{size: b.Size, most: b.Size, digest: b.Digest, stage: "fetch", done: at, total: total, prepared: a.prepared, refused: a.refused}
	for again := had > 0; ; again = false {
		if err := f.fill(ctx, p, w); err != nil {
			return false, errors.Join(err, p.Close())
		}
		if p.sum() == b.Digest {
			return had > 0, p.finish(q.blob(b.Digest))
		}
		no := refuse(ReasonDigest, "%s came as %s", b.Digest, p.sum())
		if !again {
			return false, errors.Join(no, p.discard())
		}
		if err := p.restart(p.note); err != nil {
			return false, errors.Join(err, p.Close())
		}
	}
}

func (q *Quarantine) blob(digest string) string {
	return filepath.Join(q.dir, "blobs", strings.TrimPrefix(digest, "sha256:"))
}

// has tells whether a blob is there as a whole: it got its name when its digest was right.
func (q *Quarantine) has(b image.Blob) bool {
	st, err := os.Lstat(q.blob(b.Digest))
	return err == nil && st.Mode().IsRegular() && st.Size() == b.Size
}

// layout shows the blobs of the quarantine as an OCI layout with one image.
func (q *Quarantine) layout(manifest []byte, mediaType, platform string) (*Image, error) {
	index, err := image.Index(manifest, mediaType)
	if err != nil {
		return nil, err
	}
	texts := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index,
		"blobs/sha256/" + strings.TrimPrefix(approval.Digest(manifest), "sha256:"): manifest}
	o := &openFiles{}
	return o.image(platform, func(name string) (io.ReaderAt, int64, error) {
		if b, ok := texts[name]; ok {
			return strings.NewReader(string(b)), int64(len(b)), nil
		}
		hex, ok := strings.CutPrefix(name, "blobs/sha256/")
		if !ok || !approval.IsDigest("sha256:"+hex) {
			return nil, 0, fs.ErrNotExist
		}
		return o.open(os.DirFS(filepath.Join(q.dir, "blobs")), hex)
	})
}

// openFiles are files that are closed together.
type openFiles struct{ list []fs.File }

func (o *openFiles) open(from fs.FS, name string) (io.ReaderAt, int64, error) {
	file, err := from.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := file.Stat()
	r, ok := file.(io.ReaderAt)
	if err != nil || !ok || !st.Mode().IsRegular() {
		return nil, 0, errors.Join(refuse(ReasonNone, "%.100q is no file", name), err, file.Close())
	}
	o.list = append(o.list, file)
	return r, st.Size(), nil
}

// image is that of a layout in such files.
func (o *openFiles) image(platform string, open image.OpenFile) (*Image, error) {
	i, err := inFiles(open, platform, o.Close)
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return i, nil
}

func (o *openFiles) Close() error {
	var err error
	for _, f := range slices.Backward(o.list) {
		err = errors.Join(err, f.Close())
	}
	o.list = nil
	return err
}
