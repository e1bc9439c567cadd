package translog

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
)

// Remote reads a log's files below a URL, for NewReader: whoever serves them is
// believed as little as a disk is. The files are those of the package's layout.
func Remote(ctx context.Context, url string, c *http.Client) fs.FS {
	return remote{ctx, strings.TrimSuffix(url, "/"), c}
}

type remote struct {
	ctx    context.Context
	url    string
	client *http.Client
}

func (r remote) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	q, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.url+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	a, err := r.client.Do(q)
	if err != nil {
		return nil, err
	}
	switch a.StatusCode {
	case http.StatusOK:
		return remoteFile{a.Body, name}, nil
	case http.StatusNotFound, http.StatusGone:
		a.Body.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	a.Body.Close()
	return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("the server answers %s", a.Status)}
}

// remoteFile is a file that can be read once, from its beginning.
type remoteFile struct {
	io.ReadCloser
	name string
}

func (f remoteFile) Stat() (fs.FileInfo, error) {
	return nil, &fs.PathError{Op: "stat", Path: f.name, Err: fs.ErrInvalid}
}
