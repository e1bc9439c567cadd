package fetch

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
)

// registry is one with one image, which a test makes misbehave.
type registry struct {
	*httptest.Server
	t      *testing.T
	files  imagetest.Files
	digest string // of the manifest

	mu    sync.Mutex
	asked []string
	// before may answer in the registry's place.
	before func(w http.ResponseWriter, r *http.Request) bool
}

const repository = "team/hello"

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{t: t, files: imagetest.OCI(t, imagetest.OneFile(t, "probe", strings.Repeat("all work and no play ", 50000)), imagetest.OneFile(t, "mark", "x"))}
	o, err := image.OutlineTar(bytes.NewReader(imagetest.Pack(t, r.files)), int64(len(imagetest.Pack(t, r.files))), "")
	if err != nil {
		t.Fatal(err)
	}
	r.digest = o.Manifest
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.asked = append(r.asked, q.URL.Path+" "+q.Header.Get("Range"))
	r.mu.Unlock()
	if r.before != nil && r.before(w, q) {
		return
	}
	b, ok := r.files["blobs/sha256/"+q.URL.Path[strings.LastIndex(q.URL.Path, ":")+1:]]
	if !ok || !strings.HasPrefix(q.URL.Path, "/v2/"+repository+"/") {
		w.WriteHeader(404)
		return
	}
	if strings.Contains(q.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", imagetest.ManifestType)
	}
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b))
}

func (r *registry) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *registry) reference() Reference {
	r.t.Helper()
	ref, err := ParseReference(r.host() + "/" + repository + "@" + r.digest)
	if err != nil {
		r.t.Fatal(err)
	}
	return ref
}

// isManifest tells what is asked for.
func isManifest(q *http.Request) bool { return strings.Contains(q.URL.Path, "/manifests/") }

func TestRegistry(t *testing.T) {
	r := newRegistry(t)
	q := quarantine(t)
	i, err := New(quick).Registry(t.Context(), q, r.reference())
	if err != nil {
		t.Fatal(err)
	}
	// What comes out is an image with the digest that was asked for.
	a, err := image.Read(t.Context(), bytes.NewReader(content(t, i)), t.TempDir(), image.Options{})
	if err != nil || a.Image().Manifest != r.digest || i.Manifest != r.digest {
		t.Fatalf("%v %+v", err, i.Outline)
	}
	a.Close()
	i.Close()
	// The second time no blob is fetched.
	n := len(r.asked)
	if i, err = New(quick).Registry(t.Context(), q, r.reference()); err != nil || !i.Resumed || len(r.asked) != n+1 {
		t.Errorf("%v: %v", err, r.asked[n:])
	}
	i.Close()
	if err := q.Clear(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(q.dir + "/*/*"); err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
}

// A blob of which a part is there is continued; where the part was another blob's, it
// is fetched as a whole.
func TestRegistryGoesOn(t *testing.T) {
	for _, same := range []bool{true, false} {
		r := newRegistry(t)
		q := quarantine(t)
		var large string
		for name, b := range r.files {
			if len(b) > 500000 {
				large = name
			}
		}
		begun := bytes.Clone(r.files[large][:400000])
		if !same {
			begun[77] ^= 1
		}
		digest := "sha256:" + filepath.Base(large)
		p, err := openPart(q.blob(digest)+".part", New(quick).base(r.reference())+"/blobs/"+digest, true)
		if err == nil {
			_, err = p.Write(begun)
		}
		if err == nil {
			err = p.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		i, err := New(quick).Registry(t.Context(), q, r.reference())
		if err != nil {
			t.Fatal(err)
		}
		if !i.Resumed {
			t.Error("not resumed")
		}
		content(t, i)
		i.Close()
		ranges := 0
		for _, a := range r.asked {
			if strings.Contains(a, filepath.Base(large)) {
				ranges++
			}
		}
		if want := map[bool]int{true: 1, false: 2}[same]; ranges != want {
			t.Errorf("same %t: %v", same, r.asked)
		}
	}
}

// TestAttack_BadRegistry: what a registry can do wrong, and what comes of it.
func TestAttack_BadRegistry(t *testing.T) {
	index := func(r *registry) []byte {
		return imagetest.JSON(t, map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
			"manifests": []imagetest.Descriptor{imagetest.Describe(imagetest.ManifestType, r.files["blobs/sha256/"+r.digest[7:]])}})
	}
	cases := map[string]struct {
		reason string
		change func(r *registry)
	}{
		"another manifest": {ReasonDigest, func(r *registry) {
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				if isManifest(q) {
					w.Write([]byte("{}"))
				}
				return isManifest(q)
			}
		}},
		"an index": {"image-media-type", func(r *registry) {
			b := index(r)
			r.files.Blob(b)
			r.digest = imagetest.Digest(b)
		}},
		"no manifest at all": {ReasonStatus, func(r *registry) { r.digest = imagetest.Digest([]byte("x")) }},
		"endless manifest": {ReasonTooLarge, func(r *registry) {
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				for i := 0; isManifest(q) && i < 100; i++ {
					w.Write(make([]byte, 1<<20))
				}
				return isManifest(q)
			}
		}},
		"blob with another byte": {ReasonDigest, func(r *registry) {
			for name, b := range r.files {
				if len(b) > 100000 {
					b[600] ^= 1
					r.files[name] = b
				}
			}
		}},
		"longer blob": {ReasonTooLarge, func(r *registry) {
			for name, b := range r.files {
				if strings.HasPrefix(name, "blobs/") && !strings.HasSuffix(name, r.digest[7:]) {
					r.files[name] = append(b, "more"...)
				}
			}
		}},
		"shorter blob": {ReasonTooLarge, func(r *registry) {
			for name, b := range r.files {
				if len(b) > 100000 {
					r.files[name] = b[:len(b)-1]
				}
			}
		}},
		"blob is gone": {ReasonStatus, func(r *registry) {
			for name, b := range r.files {
				if len(b) > 100000 {
					delete(r.files, name)
				}
			}
		}},
		"manifest that names exabytes": {"image-too-large", func(r *registry) {
			m := imagetest.JSON(t, map[string]any{"schemaVersion": 2, "mediaType": imagetest.ManifestType,
				"config": imagetest.Descriptor{MediaType: imagetest.ConfigType, Digest: r.digest, Size: 10},
				"layers": []imagetest.Descriptor{{MediaType: imagetest.LayerType, Digest: imagetest.Digest(nil), Size: 1 << 62}, {MediaType: imagetest.LayerType, Digest: imagetest.Digest([]byte("1")), Size: 1 << 62}}})
			r.files.Blob(m)
			r.digest = imagetest.Digest(m)
		}},
		"manifest of more than is taken": {ReasonTooLarge, func(r *registry) {
			m := imagetest.JSON(t, map[string]any{"schemaVersion": 2, "mediaType": imagetest.ManifestType,
				"config": imagetest.Descriptor{MediaType: imagetest.ConfigType, Digest: r.digest, Size: 10},
				"layers": []imagetest.Descriptor{{MediaType: imagetest.LayerType, Digest: imagetest.Digest(nil), Size: 1 << 30}}})
			r.files.Blob(m)
			r.digest = imagetest.Digest(m)
		}},
		"token from a file": {ReasonCredentials, func(r *registry) {
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				w.Header().Set("WWW-Authenticate", `Bearer realm="file:///etc/passwd"`)
				w.WriteHeader(401)
				return true
			}
		}},
		"always who is there": {ReasonCredentials, func(r *registry) {
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				if q.URL.Path == "/token" {
					w.Write([]byte(`{"token":"x"}`))
					return true
				}
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token",service="s"`)
				w.WriteHeader(401)
				return true
			}
		}},
		"basic without credentials": {ReasonCredentials, func(r *registry) {
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(401)
				return true
			}
		}},
		"token with a line in it": {ReasonCredentials, func(r *registry) {
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				if q.URL.Path == "/token" {
					w.Write([]byte(`{"token":"x\r\nHost: evil"}`))
					return true
				}
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token"`)
				w.WriteHeader(401)
				return true
			}
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			c.change(r)
			q := quarantine(t)
			i, err := New(quick).Registry(t.Context(), q, r.reference())
			if err == nil {
				i.Close()
				t.Fatal("taken")
			}
			if !strings.HasPrefix(err.Error(), c.reason) {
				t.Errorf("%v, not %s", err, c.reason)
			}
			if len(r.asked) > 8 {
				t.Errorf("%d requests", len(r.asked))
			}
			// Nothing that is wrong has the name of a blob.
			left, err := filepath.Glob(filepath.Join(q.dir, "blobs", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range left {
				if b, err := os.ReadFile(f); err == nil && !strings.Contains(f, ".part") && imagetest.Digest(b) != "sha256:"+filepath.Base(f) {
					t.Errorf("%s is %s", f, imagetest.Digest(b))
				}
			}
		})
	}
}

// A token that everybody gets, and one for a name and a password; neither follows a
// blob to another host.
func TestRegistryWithTokens(t *testing.T) {
	for _, named := range []bool{false, true} {
		r := newRegistry(t)
		var elsewhere []string
		store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			elsewhere = append(elsewhere, q.Header.Get("Authorization"))
			http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(r.files["blobs/sha256/"+filepath.Base(q.URL.Path)]))
		}))
		defer store.Close()
		r.before = func(w http.ResponseWriter, q *http.Request) bool {
			name, password, ok := q.BasicAuth()
			switch {
			case q.URL.Path == "/token":
				if q.URL.Query().Get("scope") != "repository:"+repository+":pull" || q.URL.Query().Get("service") != "s" || ok != named || named && (name != "n" || password != "p") {
					t.Errorf("token: %s %q %t", q.URL, name, ok)
				}
				w.Write([]byte(`{"token":"abc"}`))
			case q.Header.Get("Authorization") != "Bearer abc":
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token",service="s",scope="repository:other:push"`)
				w.WriteHeader(401)
			case !isManifest(q):
				http.Redirect(w, q, store.URL+"/"+q.URL.Path[strings.LastIndex(q.URL.Path, ":")+1:], http.StatusTemporaryRedirect)
			default:
				return false
			}
			return true
		}
		o := quick
		if named {
			file := filepath.Join(t.TempDir(), "credentials")
			if err := os.WriteFile(file, []byte("# mine\n"+r.host()+" n p\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			var err error
			if o.Credentials, err = LoadCredentials(file); err != nil {
				t.Fatal(err)
			}
			if s := fmt.Sprintf("%v %+v %#v", o.Credentials, o.Credentials, o.Credentials); strings.Contains(s, `"p"`) || !strings.Contains(s, "redacted") {
				t.Errorf("printed: %s", s)
			}
		}
		i, err := New(o).Registry(t.Context(), quarantine(t), r.reference())
		if err != nil {
			t.Fatal(err)
		}
		i.Close()
		for _, h := range elsewhere {
			if h != "" {
				t.Errorf("another host got %q", h)
			}
		}
		if len(elsewhere) != 3 {
			t.Errorf("%d blobs from elsewhere", len(elsewhere))
		}
	}
}

// The password at a token server is for the images of one registry: another that names the same server
// gets what everybody gets.
func TestAttack_TokenServerOfAnotherRegistry(t *testing.T) {
	for _, c := range []struct {
		line  string // behind name and password
		named bool
	}{{"", false}, {" other.example", false}, {" REGISTRY", true}} {
		r := newRegistry(t)
		var got string
		forAll := true
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if got, _, _ = q.BasicAuth(); got == "" && !forAll {
				w.WriteHeader(401)
			}
			w.Write([]byte(`{"token":"abc"}`))
		}))
		defer server.Close()
		r.before = func(w http.ResponseWriter, q *http.Request) bool {
			if q.Header.Get("Authorization") == "Bearer abc" {
				return false
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token"`)
			w.WriteHeader(401)
			return true
		}
		o := quick
		var err error
		if o.Credentials, err = parseCredentials([]byte(strings.TrimPrefix(server.URL, "http://") + " n p" + strings.Replace(c.line, "REGISTRY", r.host(), 1))); err != nil {
			t.Fatal(err)
		}
		i, err := New(o).Registry(t.Context(), quarantine(t), r.reference())
		if err != nil {
			t.Fatal(err)
		}
		i.Close()
		if (got == "n") != c.named {
			t.Errorf("line ends in %q: the server was asked by %q", c.line, got)
		}
		forAll = false
		i, err = New(o).Registry(t.Context(), quarantine(t), r.reference())
		if err == nil {
			i.Close()
		}
		if told := err != nil && strings.Contains(err.Error(), "is not for "+r.host()); told == c.named {
			t.Errorf("line ends in %q: %v", c.line, err)
		}
	}
}
