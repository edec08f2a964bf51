package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/myelin-im/myelin"

// A folder is the Go source in one folder of the repository, tests left out.
type folder struct {
	path  string // below the module, "." for its root
	files map[string]*ast.File
}

// skipped are folders that are not the project's source.
func skipped(name string) bool {
	return name == ".git" || name == "node_modules" || name == "bin" || name == "data" || name == "testdata"
}

var root = sync.OnceValue(func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
})

var positions = token.NewFileSet()

// source parses the repository once for all tests.
var source = sync.OnceValues(func() ([]*folder, error) {
	folders := map[string]*folder{}
	err := filepath.WalkDir(root(), func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if skipped(entry.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(positions, file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root(), file)
		if err != nil {
			return err
		}
		dir := path.Dir(filepath.ToSlash(name))
		if folders[dir] == nil {
			folders[dir] = &folder{path: dir, files: map[string]*ast.File{}}
		}
		folders[dir].files[name] = parsed
		return nil
	})
	var all []*folder
	for _, f := range folders {
		all = append(all, f)
	}
	return all, err
})

func folders(t *testing.T) []*folder {
	t.Helper()
	all, err := source()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no source was found")
	}
	return all
}

func at(pos token.Pos) string {
	p := positions.Position(pos)
	if name, err := filepath.Rel(root(), p.Filename); err == nil {
		p.Filename = name
	}
	return p.String()
}

// textFiles calls fn with every text file of the tree.
func textFiles(t *testing.T, fn func(name, text string)) {
	t.Helper()
	err := filepath.WalkDir(root(), func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if entry.Name() != "testdata" && skipped(entry.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(file)
		if err != nil || strings.IndexByte(string(data), 0) >= 0 {
			return err
		}
		name, err := filepath.Rel(root(), file)
		fn(filepath.ToSlash(name), string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
