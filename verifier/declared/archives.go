package declared

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// Archives are the files of a directory that go with the Pi's system: for each service
// NAME.tar and NAME.approval. Both are there, the approval is of that image for arm64, for
// its purpose, and covers what verifierd starts it with. Whose signatures count is the
// Pi's matter: that is not looked at here.
func Archives(ctx context.Context, dir string) (files []string, err error) {
	for _, name := range Names {
		tar, envelope := filepath.Join(dir, name+".tar"), filepath.Join(dir, name+".approval")
		if _, err := os.Stat(tar); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := fits(ctx, name, tar, envelope); err != nil {
			return nil, fmt.Errorf("declared: %s: %w", name, err)
		}
		files = append(files, tar, envelope)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("declared: %s has no archive of a service: 'portcullis image services' makes them", dir)
	}
	return files, nil
}

func fits(ctx context.Context, name, tar, envelope string) error {
	b, err := Envelope(envelope)
	if err != nil {
		return fmt.Errorf("its approval: %w", err)
	}
	p, err := approval.Peek(b)
	if err != nil {
		return err
	}
	if p.Approval == nil || p.Approval.Purpose != Purpose(name) {
		return &approval.Error{Reason: approval.ReasonPurpose, Detail: envelope + " is no approval for " + Purpose(name)}
	}
	want, err := Profile(name, Standard)
	if err != nil {
		return err
	}
	if err := p.Approval.Profile.Covers(&want); err != nil {
		return err
	}
	a, err := image.Open(ctx, tar, image.Options{Platform: "linux/arm64"})
	if err != nil {
		return err
	}
	defer a.Close()
	if i := a.Image(); !i.Equal(p.Approval.Image) {
		return &approval.Error{Reason: approval.ReasonDiffers, Detail: tar + " is " + i.Config + ", approved is " + p.Approval.Image.Config}
	}
	return nil
}

// Envelope reads a file with an approval, at most approval.MaxEnvelope bytes.
func Envelope(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, approval.MaxEnvelope+1))
	if err == nil && len(b) > approval.MaxEnvelope {
		err = &approval.Error{Reason: approval.ReasonMalformed, Detail: file + " is too long"}
	}
	return b, err
}
