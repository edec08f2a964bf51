package house

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, folder := range folders(t) {
		var documented []string
		for name, file := range folder.files {
			if file.Doc != nil && strings.TrimSpace(file.Doc.Text()) != "" {
				documented = append(documented, name)
			}
		}
		switch {
		case len(documented) == 0:
			t.Errorf("%s has no package comment: a reader starts there", folder.path)
		case len(documented) > 1:
			t.Errorf("%s has package comments in %s: one is enough", folder.path, strings.Join(documented, ", "))
		}
	}
}

// TestEveryExportedNameIsDocumented leaves out fields, and names of a group that has a comment of its own.
func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, folder := range folders(t) {
		for _, file := range folder.files {
			if file.Name.Name == "main" {
				continue
			}
			for _, declaration := range file.Decls {
				for _, name := range undocumented(declaration) {
					t.Errorf("%s: %s is exported without a comment that says what it means", at(name.Pos()), name.Name)
				}
			}
		}
	}
}

func undocumented(declaration ast.Decl) (names []*ast.Ident) {
	switch d := declaration.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) && !wellKnown(d) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		if d.Tok == token.IMPORT {
			return nil
		}
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					if name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						names = append(names, name)
					}
				}
			}
		}
	}
	return names
}

func exportedReceiver(receiver *ast.FieldList) bool {
	kind := receiver.List[0].Type
	for {
		switch k := kind.(type) {
		case *ast.StarExpr:
			kind = k.X
		case *ast.IndexExpr:
			kind = k.X
		case *ast.IndexListExpr:
			kind = k.X
		case *ast.Ident:
			return k.IsExported()
		default:
			return false
		}
	}
}

// wellKnown are methods whose meaning is fixed by the language's own interfaces.
func wellKnown(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return false
	}
	switch d.Name.Name {
	case "Error", "String", "Unwrap", "Len", "Less", "Swap", "MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText":
		return true
	}
	return false
}
