// Package images holds the packages that build and check images, and knows
// their code: what a builder made is kept under the digest of everything that
// it was made from, and the builder's own code is part of that. images/hpc calls it.
package images

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"sort"
	"strings"
	"sync"
)

//go:embed */*.go
var source embed.FS

var digests sync.Map // package → hex

// CodeDigest returns the digest of the source of a package below images/ as
// it was compiled in, without its tests. It panics on a name that does not exist.
func CodeDigest(pkg string) string {
	if d, ok := digests.Load(pkg); ok {
		return d.(string)
	}
	names, err := fs.Glob(source, pkg+"/*.go")
	if err != nil || len(names) == 0 {
		panic("images: no package " + pkg)
	}
	sort.Strings(names)
	h := sha256.New()
	for _, n := range names {
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		b, err := fs.ReadFile(source, n)
		if err != nil {
			panic(err) // it is in this program
		}
		fmt.Fprintf(h, "%s %d\n", n, len(b))
		h.Write(b)
	}
	d := hex.EncodeToString(h.Sum(nil))
	digests.Store(pkg, d)
	return d
}
