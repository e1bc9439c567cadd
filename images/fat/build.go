package fat

import (
	"bytes"
	"errors"
	"io"
)

// Build writes a file system with these files to w, which reads as zeros before:
// what is zero is not written. See BuildFiles for large files.
func Build(w io.WriterAt, o Options, files map[string][]byte) error {
	list := make([]File, 0, len(files))
	for path, b := range files {
		list = append(list, File{Path: path, Size: int64(len(b)), Content: bytes.NewReader(b)})
	}
	return BuildFiles(w, o, list)
}

// BuildFiles is Build for contents that are streamed.
func BuildFiles(w io.WriterAt, o Options, files []File) error {
	return errors.New("fat: not built yet")
}
