package record

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
)

// readFile reads a small file of a log that may be another machine's.
func readFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCosigned+1))
	if err == nil && len(b) > maxCosigned {
		err = refuse(ReasonEntry, "%s is longer than %d bytes", name, maxCosigned)
	}
	return b, err
}

// Files serves the log to auditors: GET of the checkpoint, the cosigned one and the
// tiles. Nothing else of the directory is shown.
func (r *Record) Files() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		name := strings.TrimPrefix(q.URL.Path, "/")
		if q.Method != http.MethodGet || !fs.ValidPath(name) || name != "checkpoint" && name != CosignedFile && !strings.HasPrefix(name, "tile/") {
			http.Error(w, "no such file", http.StatusNotFound)
			return
		}
		f, err := r.log.Reader().Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			http.Error(w, "no such file", http.StatusNotFound)
			return
		}
		if err != nil {
			http.Error(w, "not readable", http.StatusInternalServerError)
			return
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || st.Mode()&os.ModeType != 0 {
			http.Error(w, "no such file", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		io.Copy(w, f)
	})
}
