package scenario

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"portcullis/images/manifest"
	"portcullis/lab"
)

// artefacts are the files that pxed serves.
var artefacts = []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root, manifest.Envelope}

// otherImage copies the lab image and lets the play change the copy.
func otherImage(p Play, built *lab.Built) (string, error) {
	dir := filepath.Join(built.Repository, "build", "lab", "changed-"+p.Name)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := copyImage(built.Image, dir); err != nil {
		return "", fmt.Errorf("copying the image: %w", err)
	}
	return dir, p.Image(built, dir)
}

func copyImage(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, name := range artefacts {
		if err := copyFile(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
