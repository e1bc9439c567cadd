// Package docs holds the documents; its tests hold them to the code: a test,
// scenario or link that is named exists, and every event and typed reason of the
// code is explained.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"portcullis/lab/scenario"
)

// root is the repository, seen from this package.
const root = ".."

// pages are the documents, by path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found, err := filepath.Glob("*.md")
	if err != nil || len(found) < 4 {
		t.Fatalf("documents: %v %v", found, err)
	}
	out := map[string]string{"README.md": read(t, "README.md")}
	for _, f := range found {
		out["docs/"+f] = read(t, "docs/"+f)
	}
	return out
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// prose drops fenced blocks, whose backquotes and brackets mean something else.
func prose(text string) string {
	return regexp.MustCompile("(?s)\n```.*?\n```").ReplaceAllString(text, "\n")
}

var (
	span     = regexp.MustCompile("`([^`\n]+)`")
	testName = regexp.MustCompile(`^(?:([a-z0-9/]+)\.)?((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*)(?:/(.+))?$`)
	sceneRef = regexp.MustCompile(`^lab:([a-z0-9-]+)$`)
)

// A row of the threat model that names a test is worth what the test is: it exists.
func TestNamedTestsAndScenariosExist(t *testing.T) {
	scenes := map[string]bool{}
	for _, p := range scenario.Plays() {
		for _, s := range p.Scenes {
			scenes[s.Name] = true
		}
	}
	named := 0
	for page, text := range pages(t) {
		for _, m := range span.FindAllStringSubmatch(prose(text), -1) {
			if r := sceneRef.FindStringSubmatch(m[1]); r != nil {
				named++
				if !scenes[r[1]] {
					t.Errorf("%s names the lab scenario %q; 'portcullis lab check --list' has no such one", page, r[1])
				}
			}
			r := testName.FindStringSubmatch(m[1])
			if r == nil {
				continue
			}
			named++
			pkg, function, row := r[1], r[2], r[3]
			switch {
			case pkg == "":
				t.Errorf("%s names %s without its package: write `package/path.%s`", page, function, function)
			case !slices.Contains(testsOf(t, pkg).functions, function):
				t.Errorf("%s names %s, which package %s does not have", page, function, pkg)
			case row != "" && !testsOf(t, pkg).texts[row]:
				t.Errorf("%s names the case %q of %s.%s; no test there has it", page, row, pkg, function)
			}
		}
	}
	if named < 100 {
		t.Errorf("only %d tests and scenarios were found in the documents: has the way of writing them changed?", named)
	}
}

// tests are what the test files of a package hold.
type tests struct {
	functions []string
	texts     map[string]bool // literals: the names of cases are among them
}

var testsByPackage = map[string]*tests{}

// testsOf reads the tests of a package by its path below the root.
func testsOf(t *testing.T, pkg string) *tests {
	t.Helper()
	if found := testsByPackage[pkg]; found != nil {
		return found
	}
	files, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := &tests{texts: map[string]bool{}}
	testsByPackage[pkg] = found
	for _, f := range files {
		tree := parse(t, f)
		for _, d := range tree.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				found.functions = append(found.functions, fn.Name.Name)
			}
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok {
				if s, ok := text(l); ok {
					found.texts[s] = true
				}
			}
			return true
		})
	}
	return found
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Each row of the attack table says what shows it.
func TestEveryAttackNamesWhatShowsIt(t *testing.T) {
	rows := 0
	_, text, ok := strings.Cut(read(t, "docs/threat-model.md"), "\n## Attacks\n")
	if !ok {
		t.Fatal("docs/threat-model.md has no section Attacks")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	for _, line := range strings.Split(text, "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) != 4 || strings.Contains(line, "---") || strings.TrimSpace(cells[0]) == "attack" {
			continue
		}
		rows++
		shown := false
		for _, m := range span.FindAllStringSubmatch(cells[3], -1) {
			shown = shown || testName.MatchString(m[1]) || sceneRef.MatchString(m[1])
		}
		if !shown {
			t.Errorf("no test shows %q: move it to the list of what no test shows", strings.TrimSpace(cells[0]))
		}
	}
	if rows < 40 {
		t.Errorf("%d rows of attacks were found", rows)
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// Every relative link leads to a file, and to a heading where it names one.
func TestLinksResolve(t *testing.T) {
	all := pages(t)
	for page, text := range all {
		for _, m := range link.FindAllStringSubmatch(prose(text), -1) {
			to, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, "://") {
				continue
			}
			target := page
			if to != "" {
				target = path.Join(path.Dir(page), to)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
				continue
			}
			if heading != "" && !slices.Contains(headings(all[target]), heading) {
				t.Errorf("%s links to %s: there is no such heading", page, m[1])
			}
		}
	}
}

var (
	headline = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	notSlug  = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// headings gives the anchors that a Markdown viewer makes of a page's headings.
func headings(text string) (out []string) {
	for _, m := range headline.FindAllStringSubmatch(prose(text), -1) {
		out = append(out, strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return out
}

// code calls f with every Go file of the programs: no tests, no generated code.
func code(t *testing.T, f func(file string, tree *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == "build" || name == "bin" || name == "testdata" || strings.HasPrefix(name, ".") && name != ".."):
			return filepath.SkipDir
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") && !strings.HasSuffix(name, ".pb.go"):
			f(strings.TrimPrefix(filepath.ToSlash(p), root+"/"), parse(t, p))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func text(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

// Every event that a program writes stands in the formats.
func TestEveryEventIsDescribed(t *testing.T) {
	formats := read(t, "docs/formats.md")
	found := map[string]bool{}
	code(t, func(file string, tree *ast.File) {
		ast.Inspect(tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			name, isText := text(call.Args[0])
			switch method.Sel.Name {
			case "Emit", "Event", "event":
			case "Note": // of package refusal; the console has notes too
				if of, ok := method.X.(*ast.SelectorExpr); !ok || of.Sel.Name != "refused" {
					return true
				}
			default:
				return true
			}
			if !isText {
				return true
			}
			found[name] = true
			row := tableRow(formats, name)
			if row == "" {
				t.Errorf("docs/formats.md does not describe the event %s of %s", name, file)
			}
			for _, key := range keys(call.Args[len(call.Args)-1]) {
				if row != "" && !strings.Contains(row, "`"+key+"`") {
					t.Errorf("docs/formats.md does not describe the field %s of the event %s of %s", key, name, file)
				}
			}
			return true
		})
	})
	if len(found) < 50 {
		t.Errorf("only %d events were found in the code", len(found))
	}
}

// tableRow returns the table's lines that begin with the event name.
func tableRow(page, name string) (row string) {
	for _, line := range strings.Split(page, "\n") {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		if strings.HasPrefix(line, "|") && strings.Contains(first, "`"+name+"`") {
			row += line
		}
	}
	return row
}

// keys lists the keys of a literal of fields; fields that are put together elsewhere are not seen.
func keys(e ast.Expr) (out []string) {
	l, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, e := range l.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if key, ok := text(kv.Key); ok {
				out = append(out, key)
			}
		}
	}
	return out
}

var (
	reasonConst = regexp.MustCompile(`^(?:Reason|reason|Claim|Evidence|End|Void|CPUClass|Probe)[A-Z]`)
	reasonForm  = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
)

// Every typed reason is explained where the operator looks for it.
func TestEveryReasonIsExplained(t *testing.T) {
	operations := read(t, "docs/operations.md") + read(t, "docs/pi.md") + read(t, "docs/verifier.md")
	found := map[string]bool{}
	note := func(file, reason string) {
		if found[reason] {
			return
		}
		found[reason] = true
		if !strings.Contains(operations, "`"+reason+"`") {
			t.Errorf("docs/operations.md, docs/pi.md and docs/verifier.md do not explain the reason %s of %s", reason, file)
		}
	}
	code(t, func(file string, tree *ast.File) {
		ast.Inspect(tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GenDecl:
				if n.Tok != token.CONST {
					return true
				}
				for _, s := range n.Specs {
					v := s.(*ast.ValueSpec)
					for i, name := range v.Names {
						if i < len(v.Values) && reasonConst.MatchString(name.Name) {
							if s, ok := text(v.Values[i]); ok && reasonForm.MatchString(s) {
								note(file, s)
							}
						}
					}
				}
			case *ast.CompositeLit: // the firewall's: Reason{Name: "…"}
				if id, ok := n.Type.(*ast.Ident); !ok || id.Name != "Reason" {
					return true
				}
				for _, e := range n.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "Name" {
							if s, ok := text(kv.Value); ok {
								note(file, s)
							}
						}
					}
				}
			}
			return true
		})
	})
	if len(found) < 150 {
		t.Errorf("only %d reasons were found in the code", len(found))
	}
}
