package artefact

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/images/manifest"
	"portcullis/internal/sealed"
)

// Policy says which images are accepted.
type Policy struct {
	Trust           manifest.Trust
	Floor           uint64 // lowest version
	AllowLabChannel bool
}

// load verifies the image in dir and copies it into sealed memory. The files
// are opened by the fixed names of images/manifest; links are not followed. It
// returns the identity of the files it has read.
func load(dir string, p Policy, now time.Time) (*Image, identity, error) {
	seen := identity{}
	envelope, err := readEnvelope(dir, seen)
	if err != nil {
		return nil, seen, err
	}
	verified, err := manifest.Open(envelope, p.Trust, now, p.Floor)
	if err != nil {
		return nil, seen, err
	}
	if verified.LabChannel && !p.AllowLabChannel {
		return nil, seen, &Error{ReasonLab, fmt.Errorf("the image %s has a root command channel and pxe.allow_lab_image is off", verified.Image)}
	}
	img := &Image{Manifest: verified, Envelope: envelope, Loaded: now, content: map[string]content{}}
	for _, a := range verified.Artefacts {
		file, err := loadOne(dir, a, seen)
		if err != nil {
			return nil, seen, errors.Join(err, img.Close())
		}
		img.content[a.Name] = content{a, file}
	}
	if err := img.addEnvelope(); err != nil {
		return nil, seen, errors.Join(err, img.Close())
	}
	return img, seen, nil
}

func readEnvelope(dir string, seen identity) ([]byte, error) {
	f, err := open(dir, manifest.Envelope, seen)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, manifest.MaxEnvelope+1))
	if err != nil {
		return nil, &Error{ReasonUnreadable, err}
	}
	return b, nil
}

// loadOne copies one artefact; nothing beside its sealed pages and one chunk is in memory.
func loadOne(dir string, a manifest.Artefact, seen identity) (*sealed.File, error) {
	f, err := open(dir, a.Name, seen)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size := seen[a.Name].size; size != a.Size {
		return nil, &manifest.Error{Reason: manifest.ReasonArtefact,
			Detail: fmt.Sprintf("%s: %d bytes long, the manifest says %d", a.Name, size, a.Size)}
	}
	file, err := sealed.Copy(a.Name, f, a.Size, func(r io.Reader) error { return manifest.CheckArtefact(a, r) })
	var refused *manifest.Error
	if err != nil && !errors.As(err, &refused) {
		return nil, &Error{ReasonUnreadable, err}
	}
	return file, err
}

// addEnvelope makes the envelope itself servable, so that the PC can verify what it fetches.
func (i *Image) addEnvelope() error {
	b, err := Bytes(manifest.Envelope, i.Envelope)
	if err != nil {
		return err
	}
	i.content[manifest.Envelope] = b.content[manifest.Envelope]
	return nil
}

func open(dir, name string, seen identity) (*os.File, error) {
	f, err := os.OpenFile(dir+"/"+name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &Error{ReasonUnreadable, err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(&Error{ReasonUnreadable, err}, f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.Join(&Error{ReasonUnreadable, fmt.Errorf("%s is not a regular file", f.Name())}, f.Close())
	}
	seen[name] = fileIdentity(&st)
	return f, nil
}
